// y = f(source(x) w + bias) + residual, a tile of y for each block of threads: what most launches are.
//
// A source gives the left factor, eight values at a time: the pixels of x as they are, the pixels under a
// convolution's window, those behind another map's values (two paths, summed in the same registers), or a
// map enlarged to twice its size.
#pragma once

#include "cuda/address.h"
#include "cuda/reach.h"
#include "cuda/tiles/activation.h"
#include "cuda/tiles/fragments.h"
#include "cuda/tiles/output.h"
#include "cuda/vector.h"

namespace effv2::cuda {

enum class Source : int { pixels, window, joined, enlarged };
constexpr const char* kSourceNames[] = {"pixels", "window", "joined", "enlarged"};
constexpr const auto& names_of(Source) { return kSourceNames; }

struct Product {
  Source source;
  int images, height, width, channels;  // of x, 16 bits a value
  int y_height, y_width, outputs;       // of y
  int kernel, stride;                   // of a window
  int u_channels;                       // joined: of u, a map of the size of y whose values come first
  Activation activation;                // behind the sum; enlarged: in front of it
  Address x, u;
  Address w;         // (outputs rounded up to 32, depth rounded up to 16), rows in the order of fragments.h
  Address bias;      // (outputs rounded up to 32) float
  Address residual;  // a map like y, or 0
  Address y;

  EFFV2_ANYWHERE int depth() const {
    switch (source) {
      case Source::window:
        return kernel * kernel * channels;
      case Source::joined:
        return u_channels + kernel * kernel * channels;
      default:
        return channels;
    }
  }
  EFFV2_ANYWHERE int padded_depth() const { return round_up(depth(), kDepth); }
  EFFV2_ANYWHERE int rows() const { return images * y_height * y_width; }

  template <class V>
  void visit(V& v) {
    v("source", source), v("images", images), v("height", height), v("width", width);
    v("channels", channels), v("y_height", y_height), v("y_width", y_width), v("outputs", outputs);
    v("kernel", kernel), v("stride", stride), v("u_channels", u_channels), v("activation", activation);
    v("x", x), v("u", u), v("w", w), v("bias", bias), v("residual", residual), v("y", y);
  }
};

// Where each row of a tile lies in the map that a source reads.
struct Place {
  int image, row, column;
  bool valid;
};
EFFV2_DEVICE Place place_of(const Product& p, int row) {
  const int in_image = row % (p.y_height * p.y_width);
  return {row / (p.y_height * p.y_width), in_image / p.y_width, in_image % p.y_width, row < p.rows()};
}

// --- Sources ---------------------------------------------------------------------------------------------
// take: shared memory, the same for every thread. piece: eight values of a row of the tile, from number
// `depth` on, to shared memory; of rows and values that do not exist, zeros.

template <class T>
struct PixelsOf {
  const T* x;
  int first, rows, channels;

  template <int Rows>
  EFFV2_DEVICE void take(const Product& p, const Buffers& buffers, Shared&, int first_row) {
    x = at<T>(buffers, p.x);
    first = first_row, rows = p.rows(), channels = p.channels;
  }
  EFFV2_DEVICE void piece(T* to, int row, int depth) const {
    const bool valid = first + row < rows && depth < channels;
    const long long from = static_cast<long long>(first + row) * channels + depth;
    copy_async(to, valid ? x + from : x, valid);
  }
};

template <class T>
struct WindowOf {
  struct alignas(16) Corner {
    long long image;  // its first pixel
    int row, column;  // of the window's first; a row far outside where there is no output
  };
  const T* x;
  Corner* corners;
  int height, width, channels, kernel, depth_end;
  float inverse;  // of the channels

  template <int Rows>
  EFFV2_DEVICE void take(const Product& p, const Buffers& buffers, Shared& shared, int first_row) {
    x = at<T>(buffers, p.x);
    height = p.height, width = p.width, channels = p.channels, kernel = p.kernel;
    depth_end = kernel * kernel * channels;
    inverse = 1.0f / static_cast<float>(channels);
    corners = shared.take<Corner>(Rows);
    EFFV2_ROLL
    for (int i = thread(); i < Rows; i += threads()) {
      const Place place = place_of(p, first_row + i);
      const int before = kernel / 2;
      store(corners + i, Corner{static_cast<long long>(place.image) * height * width,
                                place.valid ? place.row * p.stride - before : -4 * kernel,
                                place.column * p.stride - before});
    }
    sync();
  }
  EFFV2_DEVICE void piece(T* to, int row, int depth) const {
    // Exact for as many values as any window has.
    const int tap = static_cast<int>((static_cast<float>(depth) + 0.5f) * inverse);
    const Corner corner = load<Corner>(corners + row);
    const int down = kernel == 3 ? tap / 3 : 0;
    const int y = corner.row + down, x_at = corner.column + (tap - down * kernel);
    const bool valid = depth < depth_end && y >= 0 && y < height && x_at >= 0 && x_at < width;
    const long long pixel = corner.image + static_cast<long long>(y) * width + x_at;
    copy_async(to, valid ? x + pixel * channels + (depth - tap * channels) : x, valid);
  }
};

template <class T>
struct Joined {
  const T* u;
  int first, rows, u_channels;
  WindowOf<T> window;

  template <int Rows>
  EFFV2_DEVICE void take(const Product& p, const Buffers& buffers, Shared& shared, int first_row) {
    u = at<T>(buffers, p.u);
    first = first_row, rows = p.rows(), u_channels = p.u_channels;
    window.template take<Rows>(p, buffers, shared, first_row);
  }
  EFFV2_DEVICE void piece(T* to, int row, int depth) const {
    if (depth >= u_channels) return window.piece(to, row, depth - u_channels);
    const bool valid = first + row < rows;
    copy_async(to, valid ? u + static_cast<long long>(first + row) * u_channels + depth : u, valid);
  }
};

// f of x enlarged to twice its size and cropped: bilinear, of pixels' centres. A pixel lies a quarter of x's
// from the nearer one and three quarters from the farther one, which at the edge is the nearer one again.
template <class T>
struct EnlargedOf {
  struct alignas(16) Neighbours {
    long long near;  // pixel of x
    int row_apart,
        column_apart;  // to the farther ones, in pixels; the first is kNone where there is no output
  };
  static constexpr int kNone = 1 << 30;
  const T* x;
  Neighbours* neighbours;
  int channels;
  Activation activation;

  template <int Rows>
  EFFV2_DEVICE void take(const Product& p, const Buffers& buffers, Shared& shared, int first_row) {
    x = at<T>(buffers, p.x);
    channels = p.channels, activation = p.activation;
    neighbours = shared.take<Neighbours>(Rows);
    EFFV2_ROLL
    for (int i = thread(); i < Rows; i += threads()) {
      const Place place = place_of(p, first_row + i);
      const int row = place.row / 2, column = place.column / 2;
      const int down = place.row % 2 ? (row + 1 < p.height) : -(row > 0);
      const int right = place.column % 2 ? (column + 1 < p.width) : -(column > 0);
      store(neighbours + i,
            Neighbours{(static_cast<long long>(place.image) * p.height + row) * p.width + column,
                       place.valid ? down * p.width : kNone, right});
    }
    sync();
  }
  EFFV2_DEVICE void piece(T* to, int row, int depth) const {
    const Neighbours n = load<Neighbours>(neighbours + row);
    if (n.row_apart == kNone || depth >= channels) return store(to, zeros());
    const auto read = [&](int apart) { return load<Eight>(x + (n.near + apart) * channels + depth); };
    const Eight nn = read(0), nf = read(n.column_apart);
    const Eight fn = read(n.row_apart), ff = read(n.row_apart + n.column_apart);
    Eight made;
    EFFV2_UNROLL
    for (int i = 0; i < 4; ++i) made.pair[i] = between(nn.pair[i], nf.pair[i], fn.pair[i], ff.pair[i]);
    store(to, made);
  }

  // Three quarters of the nearer row or column and a quarter of the farther one. Halves are precise enough to
  // go between them in halves; the 8 bits of the other format are not.
  EFFV2_DEVICE Pair between(Pair nn, Pair nf, Pair fn, Pair ff) const {
    if constexpr (kIsHalf<T>) {
      constexpr Pair kQuarter = 0x34003400u, kThreeQuarters = 0x3a003a00u;
      const auto go = [](Pair near, Pair far) {
        return fma2<T>(far, kQuarter, mul2<T>(near, kThreeQuarters));
      };
      return activated<T>(activation, go(go(nn, nf), go(fn, ff)));
    } else {
      const auto go = [](float near, float far) { return 0.75f * near + 0.25f * far; };
      return activated<T>(activation, go(go(low<T>(nn), low<T>(nf)), go(low<T>(fn), low<T>(ff))),
                          go(go(high<T>(nn), high<T>(nf)), go(high<T>(fn), high<T>(ff))));
    }
  }
};

// --- The tile --------------------------------------------------------------------------------------------

// Warps in three directions: of rows, of columns, and of the sum. A warp has Tiles * 16 rows and 32 columns.
// Depth values of the sum are under way in each of Stages stages.
template <int WarpRows, int WarpColumns, int WarpSums, int Tiles, int Depth, int Stages>
struct ProductShape {
  static constexpr int kWarpRows = WarpRows, kWarpColumns = WarpColumns, kWarpSums = WarpSums;
  static constexpr int kTiles = Tiles, kStep = Depth, kStages = Stages;
  static constexpr int kThreads = kWarp * WarpRows * WarpColumns * WarpSums;
  static constexpr int kTileRows = kRows * Tiles * WarpRows, kTileColumns = kColumns * WarpColumns;
  static constexpr int kStride = Depth + kPad;
  static constexpr int kLeft = kTileRows * kStride, kStage = kLeft + kTileColumns * kStride;
  static_assert(Depth % (kDepth * WarpSums) == 0);
};

template <class T, template <class> class SourceOf, class Shape>
struct ProductTile {
  using Parameters = Product;
  using S = Shape;
  static constexpr int kThreads = S::kThreads, kBlocks = 2;
  // Of those that have no first part of the sum, for those that have.
  static constexpr int kParts = (S::kWarpSums - 1) * S::kWarpRows * S::kWarpColumns * S::kTiles;
  static constexpr int kPartBytes = kWarp * sizeof(Sums);
  static_assert(kParts * kPartBytes <= S::kStages * S::kStage * 2);

  static int tiles(const Product& p) {
    return blocks_of(p.rows(), S::kTileRows) * blocks_of(p.outputs, S::kTileColumns);
  }
  static int shared_bytes(const Product&) {
    return round_up(S::kTileRows * 16, 128) + round_up(S::kStages * S::kStage * 2, 128);
  }

  static bool fits(const Product&) { return true; }
  static Reach reach(const Product& p, int tile) {
    const int first = tile / blocks_of(p.outputs, S::kTileColumns) * S::kTileRows;
    const int last = (first + S::kTileRows < p.rows() ? first + S::kTileRows : p.rows()) - 1;
    const Rows made{first / p.y_width, last / p.y_width};
    Reach reach(p.y, p.y_height, made);
    switch (p.source) {
      case Source::pixels:
        reach.and_reads(p.x, made);
        break;
      case Source::joined:
        reach.and_reads(p.u, made);
        [[fallthrough]];
      case Source::window:
        reach.and_reads(p.x, rows_under(made, p.y_height, p.height, p.kernel, p.stride));
        break;
      case Source::enlarged: {
        const auto row = [&](int y_row, int apart) {
          const int found = y_row % p.y_height / 2 + apart;
          return y_row / p.y_height * p.height + (found < 0 ? 0 : found >= p.height ? p.height - 1 : found);
        };
        reach.and_reads(p.x, {row(made.first, -1), row(made.last, 1)});
      }
    }
    return reach.and_reads(p.residual, made);
  }

  // ready: waits until x and the residual are there.
  template <class Ready>
  EFFV2_DEVICE static void run(const Product& p, const Buffers& buffers, int tile, Shared shared,
                               Ready&& ready) {
    const int columns = blocks_of(p.outputs, S::kTileColumns);
    const int first_row = tile / columns * S::kTileRows, first_column = tile % columns * S::kTileColumns;
    const int depth = p.padded_depth(), steps = blocks_of(depth, S::kStep);
    T* const stages = shared.take<T>(S::kStages * S::kStage);
    const T* const w = at<T>(buffers, p.w) + static_cast<long long>(first_column) * depth;
    const int w_rows = round_up(p.outputs, kColumns) - first_column;

    const auto load_weights = [&](int step) {
      T* const to = stages + step % S::kStages * S::kStage + S::kLeft;
      each_piece<S::kTileColumns>([&](int row, int at_depth) {
        const int from = step * S::kStep + at_depth;
        const bool valid = row < w_rows && from < depth;
        copy_async(to + row * S::kStride + at_depth,
                   valid ? w + static_cast<long long>(row) * depth + from : w, valid);
      });
    };
    SourceOf<T> source;
    const auto load_source = [&](int step) {
      T* const to = stages + step % S::kStages * S::kStage;
      each_piece<S::kTileRows>([&](int row, int at_depth) {
        source.piece(to + row * S::kStride + at_depth, row, step * S::kStep + at_depth);
      });
    };

    for (int i = 0; i < S::kStages - 1 && i < steps; ++i) load_weights(i);
    ready();
    source.template take<S::kTileRows>(p, buffers, shared, first_row);
    for (int i = 0; i < S::kStages - 1; ++i) {
      if (i < steps) load_source(i);
      copy_commit();
    }
    const int warp_sums = warp() / (S::kWarpRows * S::kWarpColumns);
    const int warp_row = warp() % S::kWarpRows, warp_column = warp() / S::kWarpRows % S::kWarpColumns;
    Sums sums[S::kTiles];
    EFFV2_UNROLL
    for (int m = 0; m < S::kTiles; ++m) sums[m].clear();
    for (int step = 0; step < steps; ++step) {
      copy_wait<S::kStages - 2>();
      sync();  // this stage is there, and all are done with the one that is filled next
      if (step + S::kStages - 1 < steps) {
        load_weights(step + S::kStages - 1);
        load_source(step + S::kStages - 1);
      }
      copy_commit();
      const T* const left =
          stages + step % S::kStages * S::kStage + warp_row * (kRows * S::kTiles) * S::kStride;
      const T* const right =
          stages + step % S::kStages * S::kStage + S::kLeft + warp_column * kColumns * S::kStride;
      EFFV2_UNROLL
      for (int i = 0; i < S::kStep / (kDepth * S::kWarpSums); ++i) {
        const int k = (i * S::kWarpSums + warp_sums) * kDepth;
        if (step * S::kStep + k >= depth) break;
        EFFV2_UNROLL
        for (int m = 0; m < S::kTiles; ++m) {
          Pair a[4];
          load_left(a, left + m * kRows * S::kStride + k, S::kStride);
          multiply<T>(sums[m], a, right + k, S::kStride);
        }
      }
    }
    copy_wait<0>();
    if constexpr (S::kWarpSums > 1)
      add_parts(sums, stages, warp_sums, warp() % (S::kWarpRows * S::kWarpColumns));
    if (warp_sums == 0) {
      finish(p, buffers, sums, first_row + warp_row * kRows * S::kTiles,
             first_column + warp_column * kColumns);
    }
  }

 private:
  template <int Rows, class F>
  EFFV2_DEVICE static void each_piece(F&& f) {
    constexpr int kPieces = S::kStep / 8;
    for (int i = thread(); i < Rows * kPieces; i += kThreads) f(i / kPieces, i % kPieces * 8);
  }

  // The sums of warps that have other parts of the depth, in the order of these.
  EFFV2_DEVICE static void add_parts(Sums (&sums)[S::kTiles], void* room, int part, int of_tile) {
    Floats* const parts = static_cast<Floats*>(room);
    const auto place = [&](int which, int m, int j) {
      return parts +
             (((which - 1) * (S::kWarpRows * S::kWarpColumns) + of_tile) * S::kTiles + m) * 4 * kWarp +
             j * kWarp + lane();
    };
    sync();  // all are done with what lay there
    if (part > 0) {
      EFFV2_UNROLL
      for (int m = 0; m < S::kTiles; ++m) {
        EFFV2_UNROLL
        for (int j = 0; j < 4; ++j) {
          const float (&v)[4] = sums[m].v[j];
          store(place(part, m, j), Floats{{v[0], v[1], v[2], v[3]}});
        }
      }
    }
    sync();
    if (part > 0) return;
    for (int other = 1; other < S::kWarpSums; ++other) {
      EFFV2_UNROLL
      for (int m = 0; m < S::kTiles; ++m) {
        EFFV2_UNROLL
        for (int j = 0; j < 4; ++j) {
          const Floats v = load<Floats>(place(other, m, j));
          EFFV2_UNROLL
          for (int i = 0; i < 4; ++i) sums[m].v[j][i] += v.v[i];
        }
      }
    }
  }

  EFFV2_DEVICE static void finish(const Product& p, const Buffers& buffers, const Sums (&sums)[S::kTiles],
                                  int first_row, int first_column) {
    Output<T> output(buffers, p.y, p.residual, p.bias, p.outputs,
                     p.source == Source::enlarged ? Activation::none : p.activation);
    if (!output.take_column(first_column)) return;
    EFFV2_UNROLL
    for (int m = 0; m < S::kTiles; ++m) {
      EFFV2_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int row = first_row + m * kRows + first_row_of_lane() + 8 * half;
        if (row < p.rows()) output.put(sums[m], half, row);
      }
    }
  }
};

}  // namespace effv2::cuda
