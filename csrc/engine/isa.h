// What runs the blocks of a network: an instruction set of the processor, as the engine sees it.
#pragma once

#include "engine/block.h"
#include "engine/spec.h"

namespace effv2 {

// What one ISA offers. The factories pack the weights and return a new block (delete it).
struct Isa {
  const char* name;
  bool (*available)();  // by the processor and by the operating system
#define EFFV2_FACTORY(kind, Spec) Block* (*kind)(const Spec&);
  EFFV2_BLOCKS(EFFV2_FACTORY)
#undef EFFV2_FACTORY
  // Multiply-adds per call of a loop that keeps every accumulator register busy, `steps` times.
  double (*peak_loop)(long steps);
};

}  // namespace effv2
