// Bilinear enlargement by 2, align_corners=False.
#pragma once

#include "cpu/target.h"

namespace effv2::EFFV2_TARGET {

// Output position i reads inputs a and b with weights 1 - t and t. The second input is read (with
// weight 0) at the edges as well, as PyTorch does, so that infinities spread in the same way.
struct Blend {
  int a;
  int b;
  float t;
};

inline Blend blend_at(int i, int inputs) {
  if (i == 0) return {0, inputs > 1 ? 1 : 0, 0.0f};
  const int a = (i - 1) / 2;
  return {a, a + 1 < inputs ? a + 1 : a, i % 2 ? 0.25f : 0.75f};
}

// One output row of one panel: row_a and row_b are the two input rows, [width][kPanel], blended with
// weights 1 - t and t; out: [out_width][kPanel] with out_width 2 * width, or one less.
inline void enlarge_row(const Operand* row_a, const Operand* row_b, float t, int width, Operand* out,
                        int out_width) {
  const Vec down = set1(t), up = set1(1.0f - t), near = set1(0.75f), far = set1(0.25f);
  for (int v = 0; v < kPanel; v += kLanes) {
    const Operand *a = opaque(row_a + v), *b = opaque(row_b + v);
    Operand* to = opaque(out + v);
    const auto blended = [&] { return fma(down, load(b), mul(up, load(a))); };
    const auto next = [&] {
      const Vec here = blended();
      a += kPanel, b += kPanel;
      return here;
    };
    Vec left = next();
    // Left of the first pixel its right neighbour has the weight 0.
    store(to, fma(zero(), width > 1 ? blended() : left, left));
    to += kPanel;
    // Between two input pixels lie two output pixels, a quarter and three quarters of the way.
#pragma GCC unroll 2
    for (int x = 1; x < width; ++x, to += 2 * kPanel) {
      const Vec right = next();
      store(to, fma(far, right, mul(near, left)));
      store(to + kPanel, fma(near, right, mul(far, left)));
      left = right;
    }
    if (out_width == 2 * width) store(to, fma(far, left, mul(near, left)));
  }
}

}  // namespace effv2::EFFV2_TARGET
