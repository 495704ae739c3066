// Counts what AVX-512's tiles do, on any processor.
#pragma once

#include "cpu/simd/avx512_sizes.h"
#include "cpu/targets/avx512_tile.h"

#include "cpu/formats/counting.h"
