// A target's row of a table, from the names that csrc/cpu defines once per target.
#pragma once

#include "engine/target.h"

namespace effv2 {

#define EFFV2_DECLARE_FACTORY(kind, Spec) Block* make_##kind(const Spec&);
#define EFFV2_ENTER_FACTORY(kind, Spec) made.kind = make_##kind;
// Declares them, and row() in the target's namespace.
#define EFFV2_TARGET_ROW(the_isa, the_format, is_available)                                  \
  namespace the_isa##_##the_format {                                                         \
    EFFV2_BLOCKS(EFFV2_DECLARE_FACTORY)                                                      \
    extern const int kValueBytes;                                                            \
    extern const float kLargestValue;                                                        \
    void forget_overflow();                                                                  \
    bool has_overflowed();                                                                   \
    void scale_and_shift(const void*, const float*, const float*, std::int64_t, int, void*); \
    void copy_rows(const MapView&, Map, int, int, void*);                                    \
    double peak_loop(long);                                                                  \
    static Target row() {                                                                    \
      Target made{};                                                                         \
      made.isa = #the_isa;                                                                   \
      made.format = #the_format;                                                             \
      made.value_bytes = kValueBytes;                                                        \
      made.largest = kLargestValue;                                                          \
      made.forget_overflow = forget_overflow;                                                \
      made.has_overflowed = has_overflowed;                                                  \
      made.available = is_available;                                                         \
      made.scale_and_shift = scale_and_shift;                                                \
      made.copy_rows = copy_rows;                                                            \
      made.peak_loop = peak_loop;                                                            \
      EFFV2_BLOCKS(EFFV2_ENTER_FACTORY)                                                      \
      return made;                                                                           \
    }                                                                                        \
  }

}  // namespace effv2
