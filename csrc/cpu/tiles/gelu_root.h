// GELU by a root: for an ISA without table lookups in registers.
//
// Phi(-a) spans eight decades on [0, 5.6] but its eighth root falls smoothly from 0.92 to 0.1, so a
// polynomial of degree 8 and three squarings give it (scripts/fit_gelu.py). The fit is off by at most 2.2e-8,
// less than the rounding of a GELU near 1, and exact at 0, so that small inputs keep their relative accuracy.
// No table, no division, no exponential. s = 5 / 32 makes the polynomial's leading coefficient 1.
//
// In half precision a fourth root and degree 4 do: off by at most 4.2e-4, where the rounding of a GELU near 1
// is 4.9e-4.
#pragma once

#include <type_traits>

#include "cpu/target.h"

namespace effv2::EFFV2_TARGET {

// (2 Phi(-a)) ** (1 / 2 ** squares) on [0, end] as a polynomial of s * a, highest power first, behind the
// leading 1; its sign is lost in the squares.
struct GeluOfFloats {
  static constexpr double s = 5.0 / 32, end = 5.6;
  static constexpr int squares = 3, terms = 8;
  static constexpr float root[terms] = {-3.77779675f, 4.67296505f, -0.467730433f, -2.73730326f,
                                        0.190306395f, 1.42623234f, 0.638303101f,  -1.0f};
};
struct GeluOfHalves {
  static constexpr double s = 0.165123452, end = 4;
  static constexpr int squares = 2, terms = 4;
  static constexpr float root[terms] = {-4.40116660f, 2.69808231f, 1.18202438f, -1.0f};
};
using GeluFit = std::conditional_t<sizeof(Operand) == sizeof(float), GeluOfFloats, GeluOfHalves>;

inline constexpr double kBeforeGelu = GeluFit::s;
inline constexpr float kGeluEnd = static_cast<float>(GeluFit::end * kBeforeGelu);

// root[i] = the polynomial at a[i]. Step by step for all of them together: it is a chain of dependent
// operations, and several chains must be in flight to fill the multiply-add units.
#ifdef EFFV2_FMA_OVERWRITES
// Where a multiply-add overwrites what it adds to, Horner's rule would copy a coefficient for every step. In
// groups of neighbouring powers only the first of each is copied.
template <int Count>
EFFV2_INLINE void gelu_root(const Vec (&a)[Count], Vec (&root)[Count]) {
  static_assert(GeluFit::terms == 8 || GeluFit::terms == 4);
  constexpr int kSize = GeluFit::terms == 8 ? 3 : 2;     // of a group; the last one's power is the leading 1
  constexpr int kGroups = (GeluFit::terms - 2) / kSize;  // below the highest
  const auto coefficient = [](int power) { return set1(GeluFit::root[GeluFit::terms - 1 - power]); };
#pragma GCC unroll 8
  for (int i = 0; i < Count; ++i) {
    const Vec square = mul(a[i], a[i]), step = kSize == 3 ? mul(square, a[i]) : square;
    constexpr int kFirst = kGroups * kSize;
    // square is the leading power of the highest group.
    Vec sum = add(square, coefficient(kFirst));
    sum = fma(a[i], coefficient(kFirst + 1), sum);
#pragma GCC unroll 4
    for (int g = kGroups - 1; g >= 0; --g) {
      Vec group = fma(a[i], coefficient(g * kSize + 1), coefficient(g * kSize));
      if constexpr (kSize == 3) group = fma(square, coefficient(g * kSize + 2), group);
      sum = fma(step, sum, group);
    }
    root[i] = sum;
  }
}
#else
template <int Count>
EFFV2_INLINE void gelu_root(const Vec (&a)[Count], Vec (&root)[Count]) {
#pragma GCC unroll 8
  for (int i = 0; i < Count; ++i) root[i] = add(a[i], set1(GeluFit::root[0]));
#pragma GCC unroll 8
  for (int k = 1; k < GeluFit::terms; ++k) {
#pragma GCC unroll 8
    for (int i = 0; i < Count; ++i) root[i] = fma(root[i], a[i], set1(GeluFit::root[k]));
  }
}
#endif

// values[i] = 2 s GELU of the vector at p + i * kLanes, which holds s x.
template <int Count>
EFFV2_INLINE void gelu_values(const Operand* p, Vec (&values)[Count]) {
  Vec a[Count], root[Count];
#pragma GCC unroll 8
  for (int i = 0; i < Count; ++i) a[i] = min(abs(load(p + i * kLanes)), set1(kGeluEnd));
  gelu_root(a, root);
#pragma GCC unroll 3
  for (int square = 0; square < GeluFit::squares; ++square) {
#pragma GCC unroll 8
    for (int i = 0; i < Count; ++i) root[i] = mul(root[i], root[i]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < Count; ++i) {
    const Vec x = load(p + i * kLanes);
    values[i] = fnma(a[i], root[i], add(x, abs(x)));
  }
}

}  // namespace effv2::EFFV2_TARGET
