#include "cpu/counting.h"

#include <cstring>

#include "cpu/target_row.h"

namespace effv2 {

static bool anywhere() { return true; }

EFFV2_TARGET_ROW(avx2, counting, anywhere)
EFFV2_TARGET_ROW(avx512, counting, anywhere)

const Target* counting_target(const char* isa) {
  static const Target table[] = {avx512_counting::row(), avx2_counting::row()};
  for (const Target& target : table) {
    if (std::strcmp(target.isa, isa) == 0) return &target;
  }
  return nullptr;
}

}  // namespace effv2
