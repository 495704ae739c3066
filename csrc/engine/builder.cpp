#include "engine/builder.h"

#include <cmath>

namespace effv2 {
namespace {

// What a bias is made for, unless it is resized to the image at hand.
Scale with_bias(int step, const AttentionBiasSpec& bias, bool exists, int pixels) {
  if (!exists || bias.resize) return {step, 0, 0, 1};
  return {step, bias.rows, bias.cols, pixels};
}

Scale scale_of(const StemSpec&) { return {4, 0, 0, 1}; }
Scale scale_of(const FfnSpec& s) { return {s.stride, 0, 0, 1}; }
Scale scale_of(const AttentionSpec& s) { return with_bias(1, s.bias, s.has_bias, s.stride); }
Scale scale_of(const ConvSpec& s) { return {s.stride, 0, 0, 1}; }
Scale scale_of(const AttentionDownsampleSpec& s) { return with_bias(2, s.bias, true, 1); }
Scale scale_of(const HeadSpec&) { return {1, 0, 0, 1}; }

template <class Spec>
void add(Network& network, const char* kind, const Fields& fields, Block* (*factory)(const Spec&)) {
  Spec spec{};
  FieldReader reader(kind, fields, network.target().largest, network.target().format);
  spec.visit(reader);
  reader.finish();
  const int given = network.out_channels();
  if (given && given != spec.in_channels) {
    throw Error(std::string(kind) + ": reads " + std::to_string(spec.in_channels) +
                " channels, but the block before gives " + std::to_string(given));
  }
  const ArenaScope scope(network.arena());
  network.target().forget_overflow();
  std::unique_ptr<Block> block(factory(spec));
  if (network.target().has_overflowed()) {
    throw OverflowError(std::string(kind) + ": a weight, with what is folded into it, is beyond what " +
                        network.target().format + " holds; use fp32");
  }
  network.add(std::move(block), spec.in_channels, scale_of(spec));
}

}  // namespace

void add_block(Network& network, const std::string& kind, const Fields& fields) {
#define EFFV2_ADD(name, Spec) \
  if (kind == #name) return add<Spec>(network, #name, fields, network.target().name);
  EFFV2_BLOCKS(EFFV2_ADD)
#undef EFFV2_ADD
  std::string known;
#define EFFV2_LIST(name, Spec) known += (known.empty() ? "" : ", ") + std::string(#name);
  EFFV2_BLOCKS(EFFV2_LIST)
#undef EFFV2_LIST
  throw Error("unknown kind of block " + shown(kind) + "; known: " + known);
}

void add_feature(Network& network, const Tensor* scale, const Tensor* shift) {
  const int channels = network.out_channels();
  if (channels == 0) throw Error("a feature needs a block before it");
  if (!scale != !shift) throw Error("a feature needs both scale and shift, or neither");
  if (!scale) return network.add_feature(nullptr, nullptr, channels);
  for (const Tensor* tensor : {scale, shift}) {
    if (tensor->shape != std::vector<std::int64_t>{channels}) {
      throw Error("scale and shift must hold one value for each of " + std::to_string(channels) +
                  " channels");
    }
    for (int i = 0; i < channels; ++i) {
      if (!std::isfinite(tensor->data[i])) throw Error("scale or shift holds a value that is not finite");
    }
  }
  network.add_feature(scale->data, shift->data, channels);
}

}  // namespace effv2
