#include <cstring>

#include "cuda/device.h"

namespace effv2::cuda {

template <class T>
void mma_of_warp(void** operands) {
  float a[16][16], b[16][8], d[16][8];
  ++emulator::counts.mmas;
  for (int lane = 0; lane < 32; ++lane) {
    const auto& mine = *static_cast<const MmaOperands*>(operands[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = g + 8 * (i % 2), column = 2 * t + 8 * (i / 2);
      a[row][column] = low<T>(mine.a[i]);
      a[row][column + 1] = high<T>(mine.a[i]);
      d[g + 8 * (i / 2)][2 * t + i % 2] = mine.d[i];
    }
    const Pair of_b[] = {mine.b0, mine.b1};
    for (int i = 0; i < 2; ++i) {
      b[2 * t + 8 * i][g] = low<T>(of_b[i]);
      b[2 * t + 8 * i + 1][g] = high<T>(of_b[i]);
    }
  }
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < 16; ++k) {
      for (int j = 0; j < 8; ++j) d[i][j] += a[i][k] * b[k][j];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& mine = *static_cast<const MmaOperands*>(operands[lane]);
    for (int i = 0; i < 4; ++i) mine.d[i] = d[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
  }
}
template void mma_of_warp<Half>(void**);
template void mma_of_warp<Bf16>(void**);

template <bool Transposed>
void matrices_of_warp(void** operands) {
  ++emulator::counts.matrices;
  for (int i = 0; i < 4; ++i) {
    std::uint16_t matrix[8][8];
    const void* rows[8];
    for (int row = 0; row < 8; ++row) {
      rows[row] = static_cast<const MatrixOperands*>(operands[8 * i + row])->row;
      std::memcpy(matrix[row], rows[row], sizeof matrix[row]);
    }
    if (emulator::config.count_passes) emulator::count_passes(rows, 8, 16, emulator::current->at);
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      const Pair first = Transposed ? matrix[2 * t][g] : matrix[g][2 * t];
      const Pair second = Transposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
      static_cast<const MatrixOperands*>(operands[lane])->r[i] = first | second << 16;
    }
  }
}
template void matrices_of_warp<false>(void**);
template void matrices_of_warp<true>(void**);

}  // namespace effv2::cuda
