#pragma once

#include "cpu/simd/avx2.h"
#include "cpu/targets/avx2_tile.h"

#include "cpu/formats/fp32.h"
