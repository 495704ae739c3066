// NEON, as every 64-bit Arm processor has it: vectors of 4 floats, 32 registers.
#pragma once

#include "cpu/simd/neon_floats.h"
#include "cpu/simd/neon_sizes.h"

namespace effv2::EFFV2_TARGET {

using Vec = Floats;

inline Vec zero() { return vdupq_n_f32(0.0f); }
inline Vec set1(float value) { return vdupq_n_f32(value); }
inline Vec broadcast(const float* p) { return vld1q_dup_f32(p); }

}  // namespace effv2::EFFV2_TARGET
