// What runs the blocks of a network: an instruction set of the processor and a number format, as the engine
// sees them.
#pragma once

#include "engine/block.h"
#include "engine/spec.h"

namespace effv2 {

// What one target offers. The factories pack the weights and return a new block (delete it).
struct Target {
  const char* isa;
  const char* format;
  int value_bytes;      // of a value of a map between two blocks, and of images and outputs
  float largest;        // of the values it holds
  bool (*available)();  // by the processor and by the operating system
  // Whether a value of the calling thread went beyond that since it was forgotten.
  void (*forget_overflow)();
  bool (*has_overflowed)();
#define EFFV2_FACTORY(kind, Spec) Block* (*kind)(const Spec&);
  EFFV2_BLOCKS(EFFV2_FACTORY)
#undef EFFV2_FACTORY
  // y = scale * x + shift per channel, for `pixels` pixels of dense maps.
  void (*scale_and_shift)(const void* x, const float* scale, const float* shift, std::int64_t pixels,
                          int channels, void* y);
  // A dense copy of rows [begin, end) of a map.
  void (*copy_rows)(const MapView& x, Map size, int begin, int end, void* y);
  // Multiply-adds per call of a loop that keeps every accumulator register busy, `steps` times.
  double (*peak_loop)(long steps);
};

}  // namespace effv2
