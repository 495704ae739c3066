// A thread of a block as a fiber: a stack of its own, which the processor is handed to and taken from.
#pragma once

#include "emulator.h"

namespace effv2::emulator {

// Of a block, one behind the other; kept for later blocks.
struct Stacks {
  char* memory;
  int threads;
};
Stacks take_stacks(int threads);
void give_back(const Stacks& stacks);

// On the stack of its number; it begins with a function that never returns.
void prepare(Thread& thread, const Stacks& stacks, void (*begin)());
// Until it yields, as the `current` one.
void run(Thread& thread);
void yield();

}  // namespace effv2::emulator
