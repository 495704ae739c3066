// Shared memory: pieces, and the banks that they lie in.
#include <algorithm>
#include <string>

#include "emulator.h"
#include "memory.h"
#include "watch.h"

namespace effv2::emulator {

bool in_shared(const void* p) {
  const auto address = static_cast<const char*>(p);
  return address >= current->block->shared && address < current->block->shared_end;
}

void* take_shared(int layout, int piece, std::size_t bytes, Place at) {
  Block& block = *current->block;
  Layout& taken = block.layouts[layout];
  current->layout = layout;
  if (piece < static_cast<int>(taken.pieces.size())) {
    const Piece& known = taken.pieces[piece];
    if (known.bytes != bytes) fail("threads take different shared memory", at);
    return known.begin;
  }
  // From the end down, which a guard follows, with gaps between: what runs over a piece is in none.
  const std::size_t whole = (bytes + kSharedPiece - 1) / kSharedPiece * kSharedPiece;
  taken.bytes += whole;
  if (taken.bytes > block.shared_bytes) {
    fail(
        "more shared memory is taken than the " + std::to_string(block.shared_bytes) + " bytes of the launch",
        at);
  }
  if (piece >= kMostPieces) fail("more than " + std::to_string(kMostPieces) + " pieces of shared memory", at);
  char* const end = taken.pieces.empty() ? block.shared_end : taken.pieces.back().begin - kSharedGap;
  taken.pieces.push_back({end - whole, bytes});
  if (config.watch && layout > 0) forget_shared(block, end - whole, bytes);
  return end - whole;
}

int rest_of_shared(int layout, int pieces) {
  Block& block = *current->block;
  const int made = ++current->layouts;
  if (made == static_cast<int>(block.layouts.size())) {
    Layout rest{{}, 0};
    for (int i = 0; i < pieces; ++i) {
      const Piece& piece = block.layouts[layout].pieces[i];
      rest.pieces.push_back(piece);
      rest.bytes += (piece.bytes + kSharedPiece - 1) / kSharedPiece * kSharedPiece;
    }
    block.layouts.push_back(std::move(rest));
  }
  return made;
}

// --- Banks -----------------------------------------------------------------------------------------------

// 32 banks of 4 bytes each; a pass serves one word of each. Of more than 4 bytes, fewer lanes go together.
void count_passes(const void* const* addresses, int lanes, int bytes) {
  constexpr int kBanks = 32, kWord = 4;
  const int at_once = bytes <= kWord ? 32 : 32 * kWord / bytes;
  for (int first = 0; first < lanes; first += at_once) {
    std::vector<std::uintptr_t> words[kBanks];
    std::size_t most = 1;
    for (int lane = first; lane < std::min(first + at_once, lanes); ++lane) {
      const auto begin = reinterpret_cast<std::uintptr_t>(addresses[lane]) / kWord;
      for (int w = 0; w < std::max(bytes / kWord, 1); ++w) {
        std::vector<std::uintptr_t>& bank = words[(begin + w) % kBanks];
        if (std::find(bank.begin(), bank.end(), begin + w) == bank.end()) bank.push_back(begin + w);
        most = std::max(most, bank.size());
      }
    }
    ++counts.shared_accesses;
    counts.shared_passes += most;
  }
}

void note_shared_access(const void* p, int bytes, Place at) {
  Thread& me = *current;
  auto visit =
      std::find_if(me.visits.begin(), me.visits.end(), [&](const auto& v) { return v.first == at.line; });
  if (visit == me.visits.end()) visit = me.visits.insert(visit, {at.line, 0});
  const int times = visit->second++;
  std::vector<TogetherAt>& together = me.block->warps[me.warp()].together;
  auto found = std::find_if(together.begin(), together.end(), [&](const TogetherAt& t) {
    return t.line == at.line && t.times == times && t.bytes == bytes;
  });
  if (found == together.end()) found = together.insert(found, {at.line, times, bytes, 0, {}});
  found->addresses[found->lanes++] = p;
}

void count_together(Block& block, int warp) {
  for (const TogetherAt& t : block.warps[warp].together) count_passes(t.addresses, t.lanes, t.bytes);
  block.warps[warp].together.clear();
  for (int l = 0; l < 32; ++l) block.threads[warp * 32 + l].visits.clear();
}

}  // namespace effv2::emulator
