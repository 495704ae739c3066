// Talking-head attention over all tokens of an image, u = f(mix2(softmax(mix1(q k^T) + bias)) v + dw(v)): 16
// queries after the other and some of the heads for each block of threads. Products of q, k, v and of u's
// projection are launches of product.h.
//
// Since heads are mixed, a block makes the logits of all of them, whatever heads' values it sums: a warp has
// eight keys, and all heads of a logit in its registers. Where all keys fit into one round, logits are made
// once; otherwise once for their largest and sum, and once more for their shares.
#pragma once

#include "cuda/reach.h"
#include "cuda/tiles/activation.h"
#include "cuda/tiles/heads.h"

namespace effv2::cuda {

struct Attention {
  static constexpr int kHeads = 8, kKey = 32, kValue = 128;
  static constexpr int kPitch = kHeads * (2 * kKey + kValue);  // of a token's q, k and v

  int images, height, width;  // tokens
  int query_tiles;            // of 16 queries, that a block makes
  int dense;                  // the bias is gathered: (heads, queries, keys), else (heads, height, width)
  Activation activation;
  Address qkv;                // (images, tokens, kPitch)
  Address mix1, bias;         // float, times log2(e)
  Address mix2, mix2_bias;    // float
  Address local, local_bias;  // (9, values) taps, (values) float
  Address u;                  // (images, tokens, values) in the order of heads.h

  EFFV2_ANYWHERE int tokens() const { return height * width; }
  EFFV2_ANYWHERE int query_groups() const { return blocks_of(tokens(), kRows * query_tiles); }

  template <class V>
  void visit(V& v) {
    v("images", images), v("height", height), v("width", width), v("query_tiles", query_tiles),
        v("dense", dense);
    v("activation", activation), v("qkv", qkv), v("mix1", mix1), v("bias", bias), v("mix2", mix2);
    v("mix2_bias", mix2_bias), v("local", local), v("local_bias", local_bias), v("u", u);
  }
};

// Heads: whose values a block sums.
template <class T, int Heads>
struct AttentionTile {
  using Parameters = Attention;
  static constexpr int kWarps = 8, kThreads = kWarp * kWarps, kBlocks = 1;
  static constexpr int kHeads = Attention::kHeads, kKey = Attention::kKey, kPitch = Attention::kPitch;
  static constexpr int kGroups = kHeads / Heads, kValues = Heads * Attention::kValue;  // of a block
  static constexpr int kKeys = 8 * kWarps;                                             // of a round
  static constexpr int kQStride = kHeads * kKey + kPad, kVStride = kValues + kPad,
                       kSharesStride = kKeys + kPad;
  static constexpr int kParts = kWarps / Heads,
                       kProducts = Attention::kValue / kParts / kColumns;  // of a head

  static int tiles(const Attention& p) { return p.images * p.query_groups() * kGroups; }
  static bool fits(const Attention&) { return true; }
  static Reach reach(const Attention& p, int tile) {
    const int place = tile / kGroups, first = place % p.query_groups() * p.query_tiles * kRows;
    const int end = first + p.query_tiles * kRows < p.tokens() ? first + p.query_tiles * kRows : p.tokens();
    const int image = place / p.query_groups() * p.height;
    const Rows made{image + first / p.width, image + (end - 1) / p.width};
    return Reach(p.u, p.height, made).and_reads(p.qkv, whole_images(made, p.height, p.height));
  }
  static int shared_bytes(const Attention&) {
    return taken<T>(kRows * kQStride) + taken<T>(kKeys * kQStride) + taken<T>(kKeys * kVStride) +
           taken<T>(Heads * kRows * kSharesStride) + taken<T>(kRows * kVStride) +
           2 * taken<float>(kWarps * kHeads * kRows) + 2 * taken<float>(kHeads * kRows) +
           taken<float>((2 * kHeads + 1) * kHeads);
  }

  struct Memory {
    T *q, *k, *v, *shares, *local;
    float *most, *total;       // of each warp, head and query
    float *largest, *inverse;  // of each head and query: the maximum, and one over the sum
    float *mix1, *mix2, *mix2_bias;
  };

  template <class Ready>
  EFFV2_DEVICE static void run(const Attention& p, const Buffers& buffers, int tile, Shared shared,
                               Ready&& ready) {
    const int first_head = tile % kGroups * Heads, group = tile / kGroups % p.query_groups();
    const int image = tile / (kGroups * p.query_groups());
    const int tokens = p.tokens(), rounds = blocks_of(tokens, kKeys);
    Memory m;
    m.q = shared.take<T>(kRows * kQStride), m.k = shared.take<T>(kKeys * kQStride);
    m.v = shared.take<T>(kKeys * kVStride), m.shares = shared.take<T>(Heads * kRows * kSharesStride);
    m.local = shared.take<T>(kRows * kVStride);
    m.most = shared.take<float>(kWarps * kHeads * kRows),
    m.total = shared.take<float>(kWarps * kHeads * kRows);
    m.largest = shared.take<float>(kHeads * kRows), m.inverse = shared.take<float>(kHeads * kRows);
    m.mix1 = shared.take<float>((2 * kHeads + 1) * kHeads);
    m.mix2 = m.mix1 + kHeads * kHeads, m.mix2_bias = m.mix2 + kHeads * kHeads;
    load_mixing(p, buffers, m);
    ready();

    const T* const qkv = at<T>(buffers, p.qkv) + static_cast<long long>(image) * tokens * kPitch;
    for (int i = 0; i < p.query_tiles; ++i) {
      const int first_query = (group * p.query_tiles + i) * kRows;
      if (first_query >= tokens) break;
      const bool keeps = rounds == 1;  // keys and values, from one tile of queries to the next
      sync();                          // all are done with the queries before
      load_tokens(m.q, kQStride, kRows, qkv, first_query, tokens, 0, kHeads * kKey);
      if (i == 0 || !keeps) load_keys(m, qkv, 0, tokens);
      if (keeps && i == 0) load_values(m, qkv, 0, tokens, first_head);
      wait();
      make_local(p, buffers, m, qkv, first_query, first_head, keeps);
      float logits[kHeads][4];
      for (int round = 0; round < rounds; ++round) {
        if (round > 0) {
          sync();
          load_keys(m, qkv, round, tokens);
          wait();
        }
        make_logits(p, buffers, m, first_query, round, logits);
        count(m, logits, round);
      }
      sync();
      combine(m);
      sync();
      Sums sums[kProducts];
      EFFV2_UNROLL
      for (int n = 0; n < kProducts; ++n) sums[n].clear();
      for (int round = 0; round < rounds; ++round) {
        if (!keeps) {
          sync();
          load_keys(m, qkv, round, tokens);
          load_values(m, qkv, round, tokens, first_head);
          wait();
          make_logits(p, buffers, m, first_query, round, logits);
        }
        make_shares(m, logits, first_head, round, tokens);
        sync();
        sum_values(m, sums);
      }
      finish(p, buffers, m, sums, image, first_query, first_head);
    }
  }

 private:
  EFFV2_DEVICE static void load_mixing(const Attention& p, const Buffers& buffers, const Memory& m) {
    const float* const mix1 = at<float>(buffers, p.mix1);
    const float* const mix2 = at<float>(buffers, p.mix2);
    for (int i = thread(); i < kHeads * kHeads; i += kThreads) {
      store(m.mix1 + i, load_constant<float>(mix1 + i));
      store(m.mix2 + i, load_constant<float>(mix2 + i));
    }
    if (thread() < kHeads) {
      store(m.mix2_bias + thread(), load_constant<float>(at<float>(buffers, p.mix2_bias) + thread()));
    }
  }
  EFFV2_DEVICE static void load_tokens(T* to, int stride, int rows, const T* qkv, int first, int tokens,
                                       int channel, int channels) {
    load_rows<T, kThreads>(to, stride, rows, channels, qkv, [&](int row) {
      return first + row < tokens ? qkv + static_cast<long long>(first + row) * kPitch + channel : nullptr;
    });
  }
  EFFV2_DEVICE static void load_keys(const Memory& m, const T* qkv, int round, int tokens) {
    load_tokens(m.k, kQStride, kKeys, qkv, round * kKeys, tokens, kHeads * kKey, kHeads * kKey);
  }
  EFFV2_DEVICE static void load_values(const Memory& m, const T* qkv, int round, int tokens, int first_head) {
    load_tokens(m.v, kVStride, kKeys, qkv, round * kKeys, tokens,
                2 * kHeads * kKey + first_head * Attention::kValue, kValues);
  }
  EFFV2_DEVICE static void wait() {
    copy_commit();
    copy_wait<0>();
    sync();
  }

  // Of this warp's eight keys and 16 queries, minus infinity for keys that do not exist.
  EFFV2_DEVICE static void make_logits(const Attention& p, const Buffers& buffers, const Memory& m,
                                       int first_query, int round, float (&logits)[kHeads][4]) {
    float products[kHeads][4];
    EFFV2_UNROLL
    for (int h = 0; h < kHeads; ++h) {
      Pair keys[4];  // of eight keys, 32 values
      load_matrices<false>(keys, m.k + (warp() * 8 + lane() % 8) * kQStride + h * kKey + lane() / 8 * 8);
      EFFV2_UNROLL
      for (int i = 0; i < 4; ++i) products[h][i] = 0;
      EFFV2_UNROLL
      for (int k = 0; k < 2; ++k) {
        Pair queries[4];
        load_left(queries, m.q + h * kKey + k * kDepth, kQStride);
        mma<T>(products[h], queries, keys[2 * k], keys[2 * k + 1]);
      }
    }
    const int tokens = p.tokens();
    const BiasPlaces places{p.width, p.dense ? tokens : 0, 1, p.width};
    int place[4];
    bool exists[2];  // of the two keys
    EFFV2_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int key = round * kKeys + warp() * 8 + lane() % 4 * 2 + i % 2;
      const int query = first_query + first_row_of_lane() + 8 * (i / 2);
      exists[i % 2] = key < tokens;
      place[i] = places.of(query < tokens ? query : 0, key < tokens ? key : 0);
    }
    const float* bias = at<float>(buffers, p.bias);
    EFFV2_UNROLL
    for (int h = 0; h < kHeads; ++h, bias += p.dense ? tokens * tokens : tokens) {
      EFFV2_UNROLL
      for (int i = 0; i < 4; ++i) logits[h][i] = load_constant<float>(bias + place[i]);
      EFFV2_UNROLL
      for (int g = 0; g < kHeads; g += 4) {
        const Floats mix = load<Floats>(m.mix1 + h * kHeads + g);
        EFFV2_UNROLL
        for (int j = 0; j < 4; ++j) {
          EFFV2_UNROLL
          for (int i = 0; i < 4; ++i) logits[h][i] += mix.v[j] * products[g + j][i];
        }
      }
      EFFV2_UNROLL
      for (int i = 0; i < 4; ++i) logits[h][i] = exists[i % 2] ? logits[h][i] : kMinusInfinity;
    }
  }

  // Largest and sum of this warp's keys so far, for each head and query.
  EFFV2_DEVICE static void count(const Memory& m, const float (&logits)[kHeads][4], int round) {
    EFFV2_UNROLL
    for (int h = 0; h < kHeads; ++h) {
      EFFV2_UNROLL
      for (int half = 0; half < 2; ++half) {
        const float a = logits[h][2 * half], b = logits[h][2 * half + 1];
        float most = largest_of_row(a > b ? a : b);
        const float base = most == kMinusInfinity ? 0 : most;  // no key is there
        float total = sum_of_row(exp2_fast(a - base) + exp2_fast(b - base));
        if (lane() % 4) continue;
        const int place = (warp() * kHeads + h) * kRows + first_row_of_lane() + 8 * half;
        if (round > 0) {  // from the first on, a warp has keys until it has none any more
          const float before = load<float>(m.most + place), now = most > before ? most : before;
          total = load<float>(m.total + place) * exp2_fast(before - now) + total * exp2_fast(most - now);
          most = now;
        }
        store(m.most + place, most);
        store(m.total + place, total);
      }
    }
  }
  EFFV2_DEVICE static void combine(const Memory& m) {
    constexpr int kAll = kHeads * kRows;
    if (thread() >= kAll) return;
    float largest = kMinusInfinity, sum = 0;
    EFFV2_UNROLL
    for (int w = 0; w < kWarps; ++w) {
      const float most = load<float>(m.most + w * kAll + thread());
      largest = most > largest ? most : largest;
    }
    EFFV2_UNROLL
    for (int w = 0; w < kWarps; ++w) {
      sum += load<float>(m.total + w * kAll + thread()) *
             exp2_fast(load<float>(m.most + w * kAll + thread()) - largest);
    }
    store(m.largest + thread(), largest);
    store(m.inverse + thread(), 1 / sum);
  }

  EFFV2_DEVICE static void make_local(const Attention& p, const Buffers& buffers, const Memory& m,
                                      const T* qkv, int first_query, int first_head, bool keeps) {
    const int channel = first_head * Attention::kValue, values = kHeads * Attention::kValue;
    const T* const v = qkv + 2 * kHeads * kKey + channel;
    local_branch<T, kThreads, kRows, kValues, 1>(
        m.local, kVStride, first_query, p.tokens(), p.width, p.height, p.width,
        at<TapOf<T>>(buffers, p.local) + channel, at<float>(buffers, p.local_bias) + channel, values,
        [&](int row, int column, int c) {
          const int token = row * p.width + column;
          return keeps ? load<Four>(m.v + token * kVStride + c)
                       : load<Four>(v + static_cast<long long>(token) * kPitch + c);
        });
  }

  // The shares of this warp's keys, mixed for each of the block's heads; none of keys that do not exist.
  EFFV2_DEVICE static void make_shares(const Memory& m, const float (&logits)[kHeads][4], int first_head,
                                       int round, int tokens) {
    const int column = warp() * 8 + lane() % 4 * 2, key = round * kKeys + column;
    EFFV2_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = first_row_of_lane() + 8 * half;
      float shares[kHeads][2];
      EFFV2_UNROLL
      for (int h = 0; h < kHeads; ++h) {
        const float largest = load<float>(m.largest + h * kRows + row);
        const float inverse = load<float>(m.inverse + h * kRows + row);
        EFFV2_UNROLL
        for (int i = 0; i < 2; ++i) shares[h][i] = exp2_fast(logits[h][2 * half + i] - largest) * inverse;
      }
      EFFV2_UNROLL
      for (int h = 0; h < Heads; ++h) {
        const float bias = load<float>(m.mix2_bias + first_head + h);
        float mixed[2] = {bias, bias};
        EFFV2_UNROLL
        for (int g = 0; g < kHeads; g += 4) {
          const Floats mix = load<Floats>(m.mix2 + (first_head + h) * kHeads + g);
          EFFV2_UNROLL
          for (int j = 0; j < 4; ++j) {
            EFFV2_UNROLL
            for (int i = 0; i < 2; ++i) mixed[i] += mix.v[j] * shares[g + j][i];
          }
        }
        const Pair made = pack<T>(key < tokens ? mixed[0] : 0, key + 1 < tokens ? mixed[1] : 0);
        store(m.shares + (h * kRows + row) * kSharesStride + column, made);
      }
    }
  }

  // This warp's values: some of one head.
  EFFV2_DEVICE static int value_of_warp() { return warp() * (kProducts * kColumns); }
  EFFV2_DEVICE static void sum_values(const Memory& m, Sums (&sums)[kProducts]) {
    const T* const shares = m.shares + warp() / kParts * kRows * kSharesStride;
    EFFV2_UNROLL
    for (int k = 0; k < kKeys; k += kDepth) {
      Pair a[4];
      load_left(a, shares + k, kSharesStride);
      EFFV2_UNROLL
      for (int n = 0; n < kProducts; ++n) {
        add_values<T>(sums[n], a, m.v + k * kVStride + value_of_warp() + n * kColumns, kVStride);
      }
    }
  }
  EFFV2_DEVICE static void finish(const Attention& p, const Buffers& buffers, const Memory& m,
                                  const Sums (&sums)[kProducts], int image, int first_query, int first_head) {
    constexpr int kAllValues = kHeads * Attention::kValue;
    T* const u = at<T>(buffers, p.u) + first_head * Attention::kValue;
    EFFV2_UNROLL
    for (int n = 0; n < kProducts; ++n) {
      EFFV2_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int row = first_row_of_lane() + 8 * half, query = first_query + row;
        if (query >= p.tokens()) continue;
        const int value = value_of_warp() + n * kColumns + first_column_of_lane();
        const long long place = (static_cast<long long>(image) * p.tokens() + query) * kAllValues;
        store_values<T>(u + place + value, m.local + row * kVStride + value, sums[n], half, 1, p.activation);
      }
    }
  }
};

}  // namespace effv2::cuda
