// GELU by a table of polynomials: for an ISA that looks up 32 floats in registers.
//
// With s = 5, n the integer next to s a and r = s a - n, -2 s a Phi(-a) is a polynomial of degree 4 in r
// whose coefficients are entry n of five tables (scripts/fit_gelu.py). The fit is off by at most 1.5e-8; its
// first entry is exactly -r + ..., so that small inputs keep their relative accuracy, and the last two are 0.
// Fewer multiply-adds than the root needs, which leaves those units to others, and half its error.
#pragma once

#include "cpu/target.h"

namespace effv2::EFFV2_TARGET {

inline constexpr double kBeforeGelu = 5;

inline constexpr int kGeluTerms = 5;
inline constexpr float kGeluEnd = 31;
// Lowest power first; one column per n.
// clang-format off
alignas(64) inline constexpr float kGeluTable[kGeluTerms][32] = {
    {0, -0.841480553f, -1.37831306f, -1.64551866f, -1.69484317f, -1.58655250f,
     -1.38083601f, -1.13059318f, -0.876788676f, -0.646745741f, -0.455002636f, -0.305875838f,
     -0.196740866f, -0.121190891f, -0.0715436488f, -0.0404969417f, -0.0219884142f, -0.0114555946f,
     -0.00572790951f, -0.00274922582f, -0.00126684981f, -0.000560521556f, -0.000238151973f, -9.71729460e-05f,
     -3.80797683e-05f, -1.43325879e-05f, -5.18150591e-06f, -1.79930623e-06f, -6.00185956e-07f, -1.92313635e-07f,
     0, 0},
    {-1.00000000f, -0.685064197f, -0.394541651f, -0.148638189f, 0.0397943184f, 0.166629940f,
     0.235906675f, 0.257723570f, 0.245348424f, 0.212360457f, 0.170464158f, 0.128281787f,
     0.0910990164f, 0.0613092594f, 0.0392163470f, 0.0238912944f, 0.0138838487f, 0.00770517858f,
     0.00408742717f, 0.00207406143f, 0.00100727193f, 0.000468412822f, 0.000208658355f, 8.90652518e-05f,
     3.64388798e-05f, 1.42924619e-05f, 5.37552933e-06f, 1.93902224e-06f, 6.70899169e-07f, 2.22690687e-07f,
     0, 0},
    {0.159577191f, 0.153288454f, 0.135523245f, 0.109297648f, 0.0787962079f, 0.0483943410f,
     0.0217490587f, 0.00119799515f, -0.0124230115f, -0.0195795912f, -0.0215964019f, -0.0201496202f,
     -0.0168407522f, -0.0129310451f, -0.00924529042f, -0.00620460650f, -0.00392898824f, -0.00235600420f,
     -0.00134128542f, -0.000726358790f, -0.000374719821f, -0.000184370219f, -8.65977490e-05f, -3.88582012e-05f,
     -1.66682694e-05f, -6.83844655e-06f, -2.68457734e-06f, -1.00881232e-06f, -3.62996644e-07f, -1.25105331e-07f,
     0, 0},
    {-2.37374638e-06f, -0.00411798805f, -0.00752223888f, -0.00967992749f, -0.0103606153f, -0.00966271199f,
     -0.00794564094f, -0.00570113864f, -0.00341280224f, -0.00144849194f, -8.98623330e-06f, 0.000866416318f,
     0.00125580432f, 0.00129647809f, 0.00113350432f, 0.000886367168f, 0.000635386212f, 0.000423158897f,
     0.000263962778f, 0.000155053785f, 8.60887158e-05f, 4.53021203e-05f, 2.26408920e-05f, 1.07637979e-05f,
     4.87400757e-06f, 2.10427447e-06f, 8.66925575e-07f, 3.41060542e-07f, 1.28206707e-07f, 4.60724117e-08f,
     0, 0},
    {-0.00105866475f, -0.000967776345f, -0.000711898378f, -0.000357355631f, 1.26581463e-05f, 0.000320937223f,
     0.000516754633f, 0.000585187401f, 0.000543669681f, 0.000430259155f, 0.000288076524f, 0.000153093104f,
     4.74712760e-05f, -2.10260296e-05f, -5.54914841e-05f, -6.48086498e-05f, -5.89970950e-05f, -4.65783887e-05f,
     -3.31725896e-05f, -2.17330089e-05f, -1.32460782e-05f, -7.56442023e-06f, -4.06712707e-06f, -2.06599339e-06f,
     -9.94078846e-07f, -4.53968539e-07f, -1.97071628e-07f, -8.14261583e-08f, -3.20549276e-08f, -1.20334684e-08f,
     0, 0},
};
// clang-format on

// values[i] = 2 s GELU of the vector at p + i * kLanes, which holds s x. Step by step for all of them
// together: several chains of dependent operations must be in flight to fill the units.
template <int Count>
EFFV2_INLINE void gelu_values(const Operand* p, Vec (&values)[Count]) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: the sum's low bits are the nearest integer
  Vec index[Count], r[Count];
#pragma GCC unroll 8
  for (int i = 0; i < Count; ++i) {
    const Vec a = min_abs(load(p + i * kLanes), set1(kGeluEnd));
    index[i] = add(a, set1(kShift));
    r[i] = sub(a, sub(index[i], set1(kShift)));
    values[i] = lookup(load_table(kGeluTable[kGeluTerms - 1]), index[i]);
  }
#pragma GCC unroll 8
  for (int k = kGeluTerms - 2; k >= 0; --k) {
#pragma GCC unroll 8
    for (int i = 0; i < Count; ++i) {
      values[i] = fma(values[i], r[i], lookup(load_table(kGeluTable[k]), index[i]));
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < Count; ++i) {
    const Vec x = load(p + i * kLanes);
    values[i] = add(add(x, abs(x)), values[i]);
  }
}

}  // namespace effv2::EFFV2_TARGET
