// The attention of the step to the last stage, u = f(softmax(q k^T + bias) v + dw(v)), from every second row
// and column to all tokens: 64 queries of two heads for each block of threads, one pass over the keys. The
// other parts are launches of their own: q of the strided convolution, k and v, and both paths joined.
#pragma once

#include "cuda/reach.h"
#include "cuda/tiles/activation.h"
#include "cuda/tiles/heads.h"

namespace effv2::cuda {

struct AttentionDownsample {
  static constexpr int kHeads = 8, kKey = 16, kValue = 64;
  static constexpr int kQPitch = kHeads * kKey, kPitch = kHeads * (kKey + kValue);

  int images, height, width;  // keys
  int query_height, query_width;
  int dense;  // the bias is gathered: (heads, queries, keys), else (heads, height, width)
  Activation activation;
  Address q, kv;              // (images, queries, kQPitch), (images, tokens, kPitch)
  Address bias;               // float, times log2(e)
  Address local, local_bias;  // (9, values) taps, (values) float
  Address u;                  // (images, queries, values) in the order of heads.h

  EFFV2_ANYWHERE int tokens() const { return height * width; }
  EFFV2_ANYWHERE int queries() const { return query_height * query_width; }

  template <class V>
  void visit(V& v) {
    v("images", images), v("height", height), v("width", width), v("query_height", query_height);
    v("query_width", query_width), v("dense", dense), v("activation", activation), v("q", q), v("kv", kv);
    v("bias", bias), v("local", local), v("local_bias", local_bias), v("u", u);
  }
};

template <class T>
struct AttentionDownsampleTile {
  using Parameters = AttentionDownsample;
  static constexpr int kWarps = 8, kThreads = kWarp * kWarps, kBlocks = 2;
  static constexpr int kHeads = AttentionDownsample::kHeads, kKey = AttentionDownsample::kKey;
  static constexpr int kValue = AttentionDownsample::kValue;
  static constexpr int kQPitch = AttentionDownsample::kQPitch, kPitch = AttentionDownsample::kPitch;
  static constexpr int kOfBlock = 2;  // heads
  static constexpr int kTiles = kWarps / kOfBlock, kQueries = kRows * kTiles, kKeys = 32, kStages = 2;
  static constexpr int kQStride = kOfBlock * kKey + kPad, kVStride = kOfBlock * kValue + kPad;
  static constexpr int kProducts = kValue / kColumns;
  static constexpr float kLog2E = 1.4426950408889634f;

  static int query_groups(const AttentionDownsample& p) { return blocks_of(p.queries(), kQueries); }
  static int tiles(const AttentionDownsample& p) { return p.images * query_groups(p) * (kHeads / kOfBlock); }
  static bool fits(const AttentionDownsample&) { return true; }
  static Reach reach(const AttentionDownsample& p, int tile) {
    const int place = tile / (kHeads / kOfBlock), groups = query_groups(p);
    const int first = place % groups * kQueries, image = place / groups * p.query_height;
    const int end = first + kQueries < p.queries() ? first + kQueries : p.queries();
    const Rows made{image + first / p.query_width, image + (end - 1) / p.query_width};
    return Reach(p.u, p.query_height, made)
        .and_reads(p.q, whole_images(made, p.query_height, p.query_height))
        .and_reads(p.kv, whole_images(made, p.query_height, p.height));
  }
  static int shared_bytes(const AttentionDownsample&) {
    return taken<T>(kQueries * kQStride) + taken<T>(kStages * kKeys * kQStride) +
           taken<T>(kStages * kKeys * kVStride) + taken<T>(kQueries * kVStride);
  }

  template <class Ready>
  EFFV2_DEVICE static void run(const AttentionDownsample& p, const Buffers& buffers, int tile, Shared shared,
                               Ready&& ready) {
    constexpr int kGroups = kHeads / kOfBlock;
    const int groups = blocks_of(p.queries(), kQueries);
    const int first_head = tile % kGroups * kOfBlock, first_query = tile / kGroups % groups * kQueries;
    const int image = tile / (kGroups * groups), tokens = p.tokens();
    T* const q = shared.take<T>(kQueries * kQStride);
    T* const k = shared.take<T>(kStages * kKeys * kQStride);
    T* const v = shared.take<T>(kStages * kKeys * kVStride);
    T* const local = shared.take<T>(kQueries * kVStride);
    ready();
    const T* const queries = at<T>(buffers, p.q) + static_cast<long long>(image) * p.queries() * kQPitch;
    const T* const kv = at<T>(buffers, p.kv) + static_cast<long long>(image) * tokens * kPitch;
    const int rounds = blocks_of(tokens, kKeys);
    load_rows<T, kThreads>(q, kQStride, kQueries, kOfBlock * kKey, queries, [&](int row) {
      const int query = first_query + row;
      return query < p.queries() ? queries + static_cast<long long>(query) * kQPitch + first_head * kKey
                                 : nullptr;
    });
    const auto load_round = [&](int round) {
      const auto token = [&](int row, int channel) {
        const int key = round * kKeys + row;
        return key < tokens ? kv + static_cast<long long>(key) * kPitch + channel : nullptr;
      };
      load_rows<T, kThreads>(k + round % kStages * kKeys * kQStride, kQStride, kKeys, kOfBlock * kKey, kv,
                             [&](int row) { return token(row, first_head * kKey); });
      load_rows<T, kThreads>(v + round % kStages * kKeys * kVStride, kVStride, kKeys, kOfBlock * kValue, kv,
                             [&](int row) { return token(row, kHeads * kKey + first_head * kValue); });
    };
    load_round(0);
    copy_commit();
    const int channel = first_head * kValue;
    local_branch<T, kThreads, kQueries, kOfBlock * kValue, 2>(
        local, kVStride, first_query, p.queries(), p.query_width, p.height, p.width,
        at<TapOf<T>>(buffers, p.local) + channel, at<float>(buffers, p.local_bias) + channel, kHeads * kValue,
        [&](int row, int column, int c) {
          const long long token = row * p.width + column;
          return load<Four>(kv + token * kPitch + kHeads * kKey + channel + c);
        });

    const int head = warp() / kTiles, row_tile = warp() % kTiles;
    Sums sums[kProducts];
    EFFV2_UNROLL
    for (int n = 0; n < kProducts; ++n) sums[n].clear();
    float most[2] = {kMinusInfinity, kMinusInfinity}, total[2] = {0, 0};
    for (int round = 0; round < rounds; ++round) {
      copy_wait<0>();
      sync();  // this round is there, and all are done with the one before
      if (round + 1 < rounds) load_round(round + 1);
      copy_commit();
      Pair a[4];
      load_left(a, q + row_tile * kRows * kQStride + head * kKey, kQStride);
      float logits[kKeys / 8][4];
      make_logits(p, buffers, a, k + round % kStages * kKeys * kQStride + head * kKey, first_head + head,
                  first_query + row_tile * kRows, round, logits);
      Pair shares[kKeys / kDepth][4];
      take_shares(logits, most, total, sums, shares);
      EFFV2_UNROLL
      for (int part = 0; part < kKeys / kDepth; ++part) {
        EFFV2_UNROLL
        for (int n = 0; n < kProducts; ++n) {
          add_values<T>(
              sums[n], shares[part],
              v + (round % kStages * kKeys + part * kDepth) * kVStride + head * kValue + n * kColumns,
              kVStride);
        }
      }
    }
    copy_wait<0>();
    T* const u =
        at<T>(buffers, p.u) + static_cast<long long>(image) * p.queries() * (kHeads * kValue) + channel;
    EFFV2_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = row_tile * kRows + first_row_of_lane() + 8 * half;
      const float inverse = 1 / sum_of_row(total[half]);
      if (first_query + row >= p.queries()) continue;
      EFFV2_UNROLL
      for (int n = 0; n < kProducts; ++n) {
        const int value = head * kValue + n * kColumns + first_column_of_lane();
        store_values<T>(u + static_cast<long long>(first_query + row) * (kHeads * kValue) + value,
                        local + row * kVStride + value, sums[n], half, inverse, p.activation);
      }
    }
  }

 private:
  EFFV2_DEVICE static void make_logits(const AttentionDownsample& p, const Buffers& buffers,
                                       const Pair (&a)[4], const T* k, int head, int first_query, int round,
                                       float (&logits)[kKeys / 8][4]) {
    const int tokens = p.tokens();
    const BiasPlaces places{p.width, p.dense ? tokens : 0, 2, p.query_width};
    const float* const bias =
        at<float>(buffers, p.bias) + static_cast<long long>(head) * (p.dense ? p.queries() * tokens : tokens);
    EFFV2_UNROLL
    for (int n = 0; n < kKeys / 8; n += 2) {
      Pair b[4];
      load_right(b, k + n * 8 * kQStride, kQStride);
      EFFV2_UNROLL
      for (int i = 0; i < 4; ++i) logits[n][i] = logits[n + 1][i] = 0;
      mma<T>(logits[n], a, b[0], b[1]);
      mma<T>(logits[n + 1], a, b[2], b[3]);
    }
    EFFV2_UNROLL
    for (int n = 0; n < kKeys / 8; ++n) {
      EFFV2_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int key = round * kKeys + n * 8 + lane() % 4 * 2 + i % 2;
        const int query = first_query + first_row_of_lane() + 8 * (i / 2);
        const int place = places.of(query < p.queries() ? query : 0, key < tokens ? key : 0);
        logits[n][i] =
            key < tokens ? logits[n][i] * kLog2E + load_constant<float>(bias + place) : kMinusInfinity;
      }
    }
  }

  // Of logits, the shares of their keys so far, by the largest so far; sums are brought to that as well.
  EFFV2_DEVICE static void take_shares(const float (&logits)[kKeys / 8][4], float (&most)[2],
                                       float (&total)[2], Sums (&sums)[kProducts],
                                       Pair (&shares)[kKeys / kDepth][4]) {
    EFFV2_UNROLL
    for (int half = 0; half < 2; ++half) {
      float largest = most[half];
      EFFV2_UNROLL
      for (int n = 0; n < kKeys / 8; ++n) {
        EFFV2_UNROLL
        for (int i = 0; i < 2; ++i) {
          largest = logits[n][2 * half + i] > largest ? logits[n][2 * half + i] : largest;
        }
      }
      largest = largest_of_row(largest);  // a number from the first round on, which has a key
      const float shrink = exp2_fast(most[half] - largest);
      most[half] = largest;
      total[half] *= shrink;
      EFFV2_UNROLL
      for (int n = 0; n < kProducts; ++n) {
        EFFV2_UNROLL
        for (int j = 0; j < 4; ++j) {
          sums[n].v[j][2 * half] *= shrink;
          sums[n].v[j][2 * half + 1] *= shrink;
        }
      }
      EFFV2_UNROLL
      for (int n = 0; n < kKeys / 8; ++n) {
        const float first = exp2_fast(logits[n][2 * half] - largest);
        const float second = exp2_fast(logits[n][2 * half + 1] - largest);
        total[half] += first + second;
        shares[n / 2][n % 2 * 2 + half] = pack<T>(first, second);
      }
    }
  }
};

}  // namespace effv2::cuda
