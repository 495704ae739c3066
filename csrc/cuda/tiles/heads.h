// What both attentions are made of: logits of a warp, sums of values, and their local branch.
//
// Values are read as they lie, so that a lane's sums are of other columns than those of a packed product; u,
// the map behind the attention, is therefore kept in another order of channels than v: of each 32, place
// 8 t + 2 j + i holds v's channel 8 j + 2 t + i (fragments.h, the other way round). A lane then has eight
// places beside each other, and the projection's weights are packed in that order.
#pragma once

#include "cuda/address.h"
#include "cuda/tiles/depthwise.h"
#include "cuda/tiles/fragments.h"
#include "cuda/tiles/rows.h"
#include "cuda/vector.h"

namespace effv2::cuda {

constexpr float kMinusInfinity = -__builtin_huge_valf();

// sums += shares v for 16 keys and 32 values. v: of the first of both in shared memory.
template <class T>
EFFV2_DEVICE void add_values(Sums& sums, const Pair (&shares)[4], const T* v, int stride) {
  EFFV2_UNROLL
  for (int j = 0; j < 4; j += 2) {
    Pair b[4];
    load_matrices<true>(b, v + lane() % 16 * stride + 8 * j + lane() / 16 * 8);
    mma<T>(sums.v[j], shares, b[0], b[1]);
    mma<T>(sums.v[j + 1], shares, b[2], b[3]);
  }
}

// The largest and the sum over the four lanes that share rows.
EFFV2_DEVICE float largest_of_row(float v) {
  EFFV2_UNROLL
  for (int mask = 1; mask < 4; mask *= 2) {
    const float other = shuffle_xor(v, mask);
    v = other > v ? other : v;
  }
  return v;
}
EFFV2_DEVICE float sum_of_row(float v) {
  EFFV2_UNROLL
  for (int mask = 1; mask < 4; mask *= 2) v += shuffle_xor(v, mask);
  return v;
}

// An attention bias by distance, or gathered: where each is for a query and a key.
struct BiasPlaces {
  int width;         // of the grid of keys
  int tokens;        // keys; 0 where the table is by distance
  int query_stride;  // of queries on that grid
  int query_width;

  EFFV2_DEVICE int of(int query, int key) const {
    if (tokens) return query * tokens + key;
    const int down = query / query_width * query_stride - key / width;
    const int right = query % query_width * query_stride - key % width;
    return (down < 0 ? -down : down) * width + (right < 0 ? -right : right);
  }
};

// dw(v) of some queries and of `Values` channels beside each other, to where u's sums are added to it.
// read(row, column, channel): four channels of a token that exists.
template <class T, int Threads, int Queries, int Values, int Stride, class Read>
EFFV2_DEVICE void local_branch(T* to, int to_stride, int first_query, int queries, int query_width,
                               int height, int width, const TapOf<T>* dw, const float* dw_bias, int channels,
                               Read&& read) {
  constexpr int kGroups = Values / 4, kAtOnce = Threads / kGroups;
  static_assert(Threads % kGroups == 0 && Queries % kAtOnce == 0);
  const int channel = thread() % kGroups * 4;
  const DepthwiseTaps<T> taps(dw + channel, channels, dw_bias + channel);
  const int place = channel / kColumns * kColumns + channel % 8 / 2 * 8 + channel % kColumns / 8 * 2;
  EFFV2_ROLL
  for (int i = thread() / kGroups; i < Queries; i += kAtOnce) {
    const int query = first_query + i;
    auto sum = taps.start();
    if (query < queries) {
      const int top = query / query_width * Stride - 1, left = query % query_width * Stride - 1;
      EFFV2_UNROLL
      for (int tap = 0; tap < kTaps; ++tap) {
        const int row = top + tap / 3, column = left + tap % 3;
        if (row < 0 || row >= height || column < 0 || column >= width) continue;
        taps.add(sum, tap, read(row, column, channel));
      }
    }
    const Four made = DepthwiseTaps<T>::made(sum);
    store(to + i * to_stride + place, made.pair[0]);
    store(to + i * to_stride + place + 8, made.pair[1]);
  }
}

// f(sums + local) to u.
template <class T>
EFFV2_DEVICE void store_values(T* u, const T* local, const Sums& sums, int half, float scale,
                               Activation activation) {
  float v[8], branch[8];
  sums.get(v, half);
  unpack<T>(branch, load<Eight>(local));
  Eight made;
  EFFV2_UNROLL
  for (int i = 0; i < 4; ++i) {
    made.pair[i] =
        activated<T>(activation, v[2 * i] * scale + branch[2 * i], v[2 * i + 1] * scale + branch[2 * i + 1]);
  }
  store(u, made);
}

}  // namespace effv2::cuda
