// The wrappers of cuda/device.h on a GPU, before anything is built on them: effv2_cuda_wrappers.
#include <cstdio>

#include "wrappers.h"

using namespace effv2::cuda::wrappers;

static void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
  std::exit(2);
}

int main() {
  int failed = 0;
  for_each_wrapper([&](const char* name, int blocks, auto kernel, const Words& in, auto wrong) {
    std::uint32_t* memory;
    const std::size_t bytes = kWords * sizeof(std::uint32_t), flags = kFlags * sizeof(std::uint32_t);
    check(cudaMalloc(&memory, 2 * bytes + flags), "memory");
    check(cudaMemcpy(memory, in.data(), bytes, cudaMemcpyHostToDevice), "input");
    check(cudaMemset(memory + kWords, 0xff, bytes), "poison");
    check(cudaMemset(memory + 2 * kWords, 0, flags), "flags");
    kernel<<<blocks, 32, kSharedBytes>>>(Buffers{memory, memory + kWords, memory + 2 * kWords});
    check(cudaGetLastError(), name);
    check(cudaDeviceSynchronize(), name);
    Words out(kWords);
    check(cudaMemcpy(out.data(), memory + kWords, bytes, cudaMemcpyDeviceToHost), "output");
    check(cudaFree(memory), "memory");
    const std::string error = wrong(in, out);
    std::printf("%-6s %s%s%s\n", error.empty() ? "ok" : "FAILED", name, error.empty() ? "" : ": ",
                error.c_str());
    failed += !error.empty();
  });
  return failed ? 1 : 0;
}
