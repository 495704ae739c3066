// Counts what AVX2's tiles do, on any processor.
#pragma once

#include "cpu/simd/avx2_sizes.h"
#include "cpu/targets/avx2_tile.h"

#include "cpu/formats/counting.h"
