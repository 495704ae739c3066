#pragma once

#include "cpu/simd/avx512.h"
#include "cpu/targets/avx512_tile.h"

#include "cpu/formats/fp32.h"
