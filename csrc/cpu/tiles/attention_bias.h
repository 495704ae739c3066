// The bias that an attention adds to its logits, per head, query and key.
//
// It is stored by distance on the grid of keys, mirrored along the columns, so that the bias of one
// query against a row of keys is a run in memory: entry (h, dr, cols - 1 + dc) for dc of either sign.
// Like all logits it is multiplied by log2(e). Small bias matrices are gathered once per resolution; larger
// ones block by block of queries. Without a table the bias is 0, on any grid; what is left of it is the
// padding.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>

#include "cpu/tiles/scratch.h"
#include "cpu/tiles/softmax.h"
#include "engine/block.h"
#include "engine/spec.h"

namespace effv2::EFFV2_TARGET {

struct Grid {
  int rows;
  int cols;
  int cells() const { return rows * cols; }
};

class AttentionBias {
 public:
  explicit AttentionBias(const AttentionBiasSpec& s)
      : heads_(s.heads),
        made_for_{s.rows, s.cols},
        query_stride_(s.query_stride),
        exists_(s.table),
        resize_(s.resize != 0),
        mirrored_(exists_ ? std::int64_t{s.heads} * s.rows * mirror_pitch() : 0) {
    if (!exists_) return;
    for (std::int64_t line = 0; line < std::int64_t{s.heads} * s.rows; ++line) {
      for (int dc = 1 - s.cols; dc < s.cols; ++dc) {
        mirrored_.data()[line * mirror_pitch() + s.cols - 1 + dc] =
            static_cast<Operand>(kLog2E * s.table[line * s.cols + (dc < 0 ? -dc : dc)]);
      }
    }
  }

  bool fits(Grid keys, char* error) const {
    if (resize_ || !exists_ || (keys.rows == made_for_.rows && keys.cols == made_for_.cols)) return true;
    std::snprintf(error, 256,
                  "the attention bias is made for a grid of %d x %d, but this input gives %d x %d",
                  made_for_.rows, made_for_.cols, keys.rows, keys.cols);
    return false;
  }

  std::int64_t bytes() const { return mirrored_.bytes(); }
  static int padded_keys(Grid keys) { return round_up(keys.cells(), kLanes); }

  Grid queries_of(Grid keys) const {
    return {(keys.rows + query_stride_ - 1) / query_stride_, (keys.cols + query_stride_ - 1) / query_stride_};
  }
  // Whether the whole matrix is gathered in advance.
  bool gathered(Grid keys) const { return gathered_values(keys) <= kGatherLimit; }

  // block: the most queries that are asked for together.
  std::int64_t prepared_bytes(Grid keys, int block) const {
    if (!exists_) return block * row_bytes(keys);
    if (gathered(keys)) return std::int64_t{heads_} * queries_of(keys).cells() * row_bytes(keys);
    return resize_ ? kTapFloats * keys.cells() * std::int64_t{sizeof(float)} : 0;
  }
  void prepare(Grid keys, int block, void* prepared) const {
    Operand* rows = static_cast<Operand*>(prepared);
    if (!exists_) {
      for (int q = 0; q < block; ++q, rows += padded_keys(keys)) {
        std::memset(rows, 0, keys.cells() * sizeof(Operand));
        pad(keys, rows);
      }
      return;
    }
    if (!gathered(keys)) {
      if (resize_) key_taps(keys, static_cast<float*>(prepared));
      return;
    }
    Array<float> taps, line;
    if (resize_) {
      taps = Array<float>(std::int64_t{kTapFloats} * keys.cells());
      line = Array<float>(line_floats());
      key_taps(keys, taps.data());
    }
    const int queries = queries_of(keys).cells(), pitch = padded_keys(keys);
    for (int h = 0; h < heads_; ++h) {
      for (int q = 0; q < queries; ++q, rows += pitch) row(keys, h, q, taps.data(), line.data(), rows);
    }
  }

  // The bias of queries [q0, q1), all heads: rows of padded_keys, heads head_stride apart.
  // Padding is -inf, which makes the probability of padded keys zero.
  struct Block {
    const Operand* data;
    std::int64_t head_stride;
  };
  // What a thread needs for block(): rows of so many queries, and room for a row at a time.
  struct Own {
    Operand* rows;
    float* line;
  };
  Own own(Carver& c, Grid keys, int block) const {
    if (!exists_ || gathered(keys)) return {};
    return {c.take<Operand>(std::int64_t{heads_} * block * padded_keys(keys)), c.take<float>(line_floats())};
  }
  Block block(Grid keys, int q0, int q1, const void* prepared, const Own& own) const {
    const std::int64_t pitch = padded_keys(keys);
    const Operand* const rows = static_cast<const Operand*>(prepared);
    if (!exists_) return {rows, 0};
    if (gathered(keys)) return {rows + q0 * pitch, queries_of(keys).cells() * pitch};
    const std::int64_t head_stride = (q1 - q0) * pitch;
    for (int h = 0; h < heads_; ++h) {
      for (int q = q0; q < q1; ++q)
        row(keys, h, q, static_cast<const float*>(prepared), own.line,
            own.rows + h * head_stride + (q - q0) * pitch);
    }
    return {own.rows, head_stride};
  }

 private:
  static constexpr std::int64_t kGatherLimit = 1 << 20;  // values
  static constexpr int kTapFloats = 5;  // index of the first of four inputs, then their weights

  int mirror_pitch() const { return 2 * made_for_.cols - 1; }
  std::int64_t line_floats() const { return resize_ ? 2 * made_for_.cells() : 0; }
  static std::int64_t row_bytes(Grid keys) { return padded_keys(keys) * std::int64_t{sizeof(Operand)}; }
  std::int64_t gathered_values(Grid keys) const {
    return std::int64_t{heads_} * queries_of(keys).cells() * padded_keys(keys);
  }

  void row(Grid keys, int head, int query, const float* taps, float* line, Operand* out) const {
    if (!resize_) {
      gather(head, query, queries_of(keys).cols, keys, out);
    } else {
      resized(keys, head, query, taps, line, out);
    }
    pad(keys, out);
  }
  // Behind the keys that exist.
  static void pad(Grid keys, Operand* out) {
    for (int k = keys.cells(); k < padded_keys(keys); ++k) out[k] = static_cast<Operand>(-INFINITY);
  }

  // The bias of one query against a grid no larger than the one the table was made for.
  template <class Out>
  void gather(int head, int query, int query_cols, Grid keys, Out* out) const {
    const int r = query / query_cols * query_stride_, c = query % query_cols * query_stride_;
    for (int row = 0; row < keys.rows; ++row, out += keys.cols) {
      const int distance = r < row ? row - r : r - row;
      const Operand* const from = mirrored_.data() +
                                  (std::int64_t{head} * made_for_.rows + distance) * mirror_pitch() +
                                  made_for_.cols - 1 - c;
      for (int k = 0; k < keys.cols; ++k) out[k] = from[k];
    }
  }

  // Position i of `outputs` reads inputs first ... first + 3 (clamped to the ends) of `inputs`, by
  // Keys' cubic kernel with a = -0.75, as torch.nn.functional.interpolate(mode="bicubic") does.
  static int cubic_taps(int i, int outputs, int inputs, float* weights) {
    const double at = (i + 0.5) * inputs / outputs - 0.5;
    const double below = std::floor(at), t = at - below, a = -0.75;
    const auto near = [a](double d) { return ((a + 2) * d - (a + 3)) * d * d + 1; };
    const auto far = [a](double d) { return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a; };
    weights[0] = static_cast<float>(far(t + 1));
    weights[1] = static_cast<float>(near(t));
    weights[2] = static_cast<float>(near(1 - t));
    weights[3] = static_cast<float>(far(2 - t));
    return static_cast<int>(below) - 1;
  }
  static int clamped(int i, int count) { return i < 0 ? 0 : i < count ? i : count - 1; }

  void key_taps(Grid keys, float* taps) const {
    for (int k = 0; k < keys.cells(); ++k, taps += kTapFloats) {
      taps[0] = static_cast<float>(cubic_taps(k, keys.cells(), made_for_.cells(), taps + 1));
    }
  }

  // The matrix (queries x keys) of the grid that the table was made for, enlarged or reduced as if it
  // were an image.
  void resized(Grid keys, int head, int query, const float* taps, float* line, Operand* out) const {
    const Grid made_for_queries = queries_of(made_for_);
    const int inputs = made_for_.cells();
    float weights[4];
    const int first = cubic_taps(query, queries_of(keys).cells(), made_for_queries.cells(), weights);
    float* source = line + inputs;
    for (int i = 0; i < 4; ++i) {
      gather(head, clamped(first + i, made_for_queries.cells()), made_for_queries.cols, made_for_, source);
      for (int k = 0; k < inputs; ++k) line[k] = (i ? line[k] : 0.0f) + weights[i] * source[k];
    }
    for (int k = 0; k < keys.cells(); ++k, taps += kTapFloats) {
      const int at = static_cast<int>(taps[0]);
      float sum = 0.0f;
      for (int i = 0; i < 4; ++i) sum += taps[1 + i] * line[clamped(at + i, inputs)];
      out[k] = static_cast<Operand>(sum);
    }
  }

  int heads_;
  Grid made_for_;
  int query_stride_;
  bool exists_, resize_;
  Array<Operand> mirrored_;
};

}  // namespace effv2::EFFV2_TARGET
