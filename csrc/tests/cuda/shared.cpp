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

// Whether a layout begins with a piece of another one.
static bool keeps(const Layout& layout, const Piece& piece) {
  const auto is_it = [&](const Piece& kept) { return kept.begin == piece.begin; };
  return std::any_of(layout.pieces.begin(), layout.pieces.begin() + layout.kept, is_it);
}

bool is_given_out_again(const Block& block, const Piece& piece) {
  return current->layout < block.newest && !keeps(block.layouts[block.newest], piece);
}

// The memory of a layout before lies elsewhere on a GPU, where there are no gaps: nobody may still use it,
// wherever it is here.
static void begin_layout(Block& block, int layout, Place at) {
  for (const int before : {block.newest, block.layouts[layout].before}) {
    for (const Piece& piece : block.layouts[before].pieces) {
      if (piece.used == block.epoch + 1 && !keeps(block.layouts[layout], piece)) {
        fail("shared memory is given out again that is used since the last barrier", at);
      }
    }
  }
  block.newest = layout;
}

void* take_shared(int layout, int piece, std::size_t bytes, Place at) {
  Block& block = *current->block;
  Layout& taken = block.layouts[layout];
  if (layout > block.newest) begin_layout(block, layout, at);
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
  taken.pieces.push_back({end - whole, bytes, 0});
  if (config.watch && layout > 0) forget_shared(block, end - whole, bytes);
  return end - whole;
}

int rest_of_shared(int layout, int pieces, Place at) {
  Block& block = *current->block;
  const int made = ++current->layouts;
  if (made < static_cast<int>(block.layouts.size())) {
    const Layout& known = block.layouts[made];
    if (known.before != layout || known.kept != pieces) fail("threads begin different layouts", at);
  } else {
    Layout rest{{}, 0, layout, pieces};
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

static std::map<std::pair<const char*, int>, Passes> by_place;

std::map<std::string, Passes> passes_by_place() {
  std::map<std::string, Passes> named;
  for (const auto& [at, found] : by_place) {
    Passes& sum = named[name_of(Place{at.first, at.second})];
    sum.accesses += found.accesses;
    sum.passes += found.passes;
  }
  return named;
}
void reset_counts() {
  counts = {};
  by_place.clear();
}

// 32 banks of 4 bytes each; a pass serves one word of each. Of more than 4 bytes, fewer lanes go together.
void count_passes(const void* const* addresses, int lanes, int bytes, Place at) {
  constexpr int kBanks = 32, kWord = 4;
  const int at_once = bytes <= kWord ? 32 : 32 * kWord / bytes;
  Passes& here = by_place[{at.file, at.line}];
  for (int first = 0; first < lanes; first += at_once) {
    std::uintptr_t words[kBanks][32];
    int counted[kBanks] = {}, most = 0;
    for (int lane = first; lane < std::min(first + at_once, lanes); ++lane) {
      if (!addresses[lane]) continue;
      const auto begin = reinterpret_cast<std::uintptr_t>(addresses[lane]) / kWord;
      for (int w = 0; w < std::max(bytes / kWord, 1); ++w) {
        const int bank = static_cast<int>((begin + w) % kBanks);
        std::uintptr_t* const end = words[bank] + counted[bank];
        if (std::find(words[bank], end, begin + w) != end) continue;
        *end = begin + w;
        most = std::max(most, ++counted[bank]);
      }
    }
    if (!most) continue;
    for (std::uint64_t* const accesses : {&counts.shared_accesses, &here.accesses}) ++*accesses;
    for (std::uint64_t* const passes : {&counts.shared_passes, &here.passes}) *passes += most;
  }
}

void note_shared_access(const void* p, int bytes, Place at) {
  Thread& me = *current;
  auto visit = std::find_if(me.visits.begin(), me.visits.end(), [&](const auto& v) { return v.first == at; });
  if (visit == me.visits.end()) visit = me.visits.insert(visit, {at, 0});
  const int times = visit->second++;
  std::vector<TogetherAt>& together = me.block->warps[me.warp()].together;
  auto found = std::find_if(together.begin(), together.end(), [&](const TogetherAt& t) {
    return t.at == at && t.times == times && t.bytes == bytes;
  });
  if (found == together.end()) found = together.insert(found, {at, times, bytes, {}});
  found->addresses[me.lane()] = p;
}

void count_together(Block& block, int warp) {
  for (const TogetherAt& t : block.warps[warp].together) count_passes(t.addresses, 32, t.bytes, t.at);
  block.warps[warp].together.clear();
  for (int l = 0; l < 32; ++l) block.threads[warp * 32 + l].visits.clear();
}

}  // namespace effv2::emulator
