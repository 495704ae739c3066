#include "fibers.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

namespace effv2::emulator {

static constexpr std::size_t kStack = 64 << 10;
static constexpr std::uint64_t kCanary = 0x7ead5afe5eed1e55;  // at the end of each stack

Thread* current = nullptr;

__attribute__((naked, noinline)) static void switch_stack(void** /*from: rdi*/, void* /*to: rsi*/) {
  asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}

static void* scheduler_stack;

void run(Thread& thread) {
  current = &thread;
  switch_stack(&scheduler_stack, thread.stack_pointer);
  current = nullptr;
}

void yield() {
  Thread& me = *current;
  if (*reinterpret_cast<std::uint64_t*>(me.stack) != kCanary) {
    // The stack that ran over is another thread's; nothing can go on.
    std::fprintf(stderr, "a thread of a kernel needs more than %zu bytes of stack\n", kStack);
    std::abort();
  }
  switch_stack(&me.stack_pointer, scheduler_stack);
}

void prepare(Thread& thread, const Stacks& stacks, void (*begin)()) {
  thread.stack = stacks.memory + thread.id * kStack;
  *reinterpret_cast<std::uint64_t*>(thread.stack) = kCanary;
  void** sp = reinterpret_cast<void**>(thread.stack + kStack);
  *--sp = nullptr;  // as behind a call: 8 off a multiple of 16
  *--sp = reinterpret_cast<void*>(begin);
  for (int i = 0; i < 6; ++i) *--sp = nullptr;
  thread.stack_pointer = sp;
}

static std::vector<Stacks> spare_stacks;

Stacks take_stacks(int threads) {
  for (auto found = spare_stacks.begin(); found != spare_stacks.end(); ++found) {
    if (found->threads < threads) continue;
    const Stacks taken = *found;
    spare_stacks.erase(found);
    return taken;
  }
  void* const p = mmap(nullptr, threads * kStack, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw Error("there is no memory for the stacks of a block");
  return {static_cast<char*>(p), threads};
}
void give_back(const Stacks& stacks) { spare_stacks.push_back(stacks); }

}  // namespace effv2::emulator
