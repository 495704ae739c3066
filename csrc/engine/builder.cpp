#include "engine/builder.h"

namespace effv2 {
namespace {

template <class Spec>
void add(Network& network, const char* kind, const Fields& fields, Block* (*factory)(const Spec&)) {
  Spec spec{};
  FieldReader reader(kind, fields, network.target().largest, network.target().format);
  spec.visit(reader);
  const int given = network.out_channels();
  if (given && given != spec.in_channels) {
    throw Error(std::string(kind) + ": reads " + std::to_string(spec.in_channels) +
                " channels, but the block before gives " + std::to_string(given));
  }
  const ArenaScope scope(network.arena());
  network.target().forget_overflow();
  std::unique_ptr<Block> block(factory(spec));
  if (network.target().has_overflowed()) {
    throw Error(std::string(kind) + ": a weight, with what is folded into it, is beyond what " +
                network.target().format + " holds; use fp32");
  }
  network.add(std::move(block), spec.in_channels);
}

}  // namespace

void add_block(Network& network, const std::string& kind, const Fields& fields) {
#define EFFV2_ADD(name, Spec) \
  if (kind == #name) return add<Spec>(network, #name, fields, network.target().name);
  EFFV2_BLOCKS(EFFV2_ADD)
#undef EFFV2_ADD
  throw Error("unknown kind of block '" + kind + "'");
}

}  // namespace effv2
