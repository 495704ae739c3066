// Starts kernels: on a GPU by launch.cu, in tests by the emulator.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/network.h"

namespace effv2::cuda {

// Bytes of shared memory that a block of threads can have on the GPU that has most of it.
constexpr int kMostShared = 227 << 10;

// Of a step as planned.
struct Extent {
  int tiles;  // blocks of threads
  int threads, shared_bytes;
};
// {0, 0, 0} for a shape that there is not, or whose registers or shared memory do not hold a tile on any GPU.
Extent extent_of(const Step& step);
// Throws std::invalid_argument instead of these.
Extent launched_extent_of(const Step& step);

// For messages.
std::string name_of(const Step& step);

// Return before the kernel is through; nothing is allocated, and the stream may be recorded as a graph. Throw
// std::invalid_argument for a step without extent, std::runtime_error (runtime.h's CudaError) with what the
// driver says.
void launch(const Step& step, const Buffers& buffers, void* stream);
// As one launch of so many blocks of threads, which must be the same for all launches with a control memory.
void launch(const Network& network, Format format, int blocks, const Buffers& buffers, void* stream);

}  // namespace effv2::cuda
