#include "engine/builder.h"

#include <cmath>
#include <limits>

namespace effv2 {
namespace {

std::string text(const std::vector<std::int64_t>& shape) {
  std::string s = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + (shape.size() == 1 ? ",)" : ")");
}

// Reads the fields of one block and remembers its name for the messages.
class Reader {
 public:
  Reader(const std::string& kind, const Fields& fields) : kind_(kind), fields_(fields) {}

  int option(const std::string& name, std::int64_t fallback = -1) const {
    const auto found = fields_.options.find(name);
    const std::int64_t value = found == fields_.options.end() ? fallback : found->second;
    if (value < 0 || value > kLargest)
      throw Error(kind_ + ": the option " + name + " is missing or out of range");
    return static_cast<int>(value);
  }
  // Size of one axis of a tensor, for sizes that others are checked against.
  int size(const std::string& name, std::size_t axis) const {
    const Tensor& t = tensor(name);
    if (axis >= t.shape.size())
      throw Error(kind_ + ": " + name + " has the shape " + text(t.shape) + ", which has too few axes");
    if (t.shape[axis] < 1 || t.shape[axis] > kLargest)
      throw Error(kind_ + ": " + name + " has the shape " + text(t.shape));
    return static_cast<int>(t.shape[axis]);
  }
  const float* get(const std::string& name, std::vector<std::int64_t> shape) const {
    const Tensor& t = tensor(name);
    if (t.shape != shape) {
      throw Error(kind_ + ": " + name + " has the shape " + text(t.shape) + ", expected " + text(shape));
    }
    std::int64_t count = 1;
    for (const std::int64_t n : shape) count *= n;
    for (std::int64_t i = 0; i < count; ++i) {
      if (!std::isfinite(t.data[i])) throw Error(kind_ + ": " + name + " holds a value that is not finite");
    }
    return t.data;
  }
  // Channels of all heads together.
  int channels(int heads, int each) const {
    const std::int64_t count = std::int64_t{heads} * each;
    if (count > kLargest) {
      fail("the options give " + std::to_string(heads) + " heads of " + std::to_string(each) +
           " channels, which is too many");
    }
    return static_cast<int>(count);
  }
  AttentionBiasSpec bias(int heads, int query_stride) const {
    const int rows = size("bias", 1), cols = size("bias", 2);
    return {get("bias", {heads, rows, cols}), heads, rows, cols, query_stride, option("resize_bias", 0) != 0};
  }
  [[noreturn]] void fail(const std::string& why) const { throw Error(kind_ + ": " + why); }

 private:
  static constexpr std::int64_t kLargest = 1 << 20;
  const Tensor& tensor(const std::string& name) const {
    const auto found = fields_.tensors.find(name);
    if (found == fields_.tensors.end()) throw Error(kind_ + ": the tensor " + name + " is missing");
    return found->second;
  }
  const std::string& kind_;
  const Fields& fields_;
};

struct Built {
  Block* block;
  int in_channels;
};

Built stem(const Isa& isa, const Reader& r) {
  const int in = r.size("conv1_weight", 1), mid = r.size("conv1_weight", 0), out = r.size("conv2_weight", 0);
  const StemSpec spec{in,
                      mid,
                      out,
                      r.get("conv1_weight", {mid, in, 3, 3}),
                      r.get("conv1_bias", {mid}),
                      r.get("conv2_weight", {out, mid, 3, 3}),
                      r.get("conv2_bias", {out})};
  return {isa.stem(spec), in};
}

Built ffn(const Isa& isa, const Reader& r) {
  const int hidden = r.size("fc1_weight", 0), channels = r.size("fc1_weight", 1);
  const FfnSpec spec{channels,
                     hidden,
                     r.get("fc1_weight", {hidden, channels}),
                     r.get("fc1_bias", {hidden}),
                     r.get("dw_weight", {hidden, 3, 3}),
                     r.get("dw_bias", {hidden}),
                     r.get("fc2_weight", {channels, hidden}),
                     r.get("fc2_bias", {channels})};
  return {isa.ffn(spec), channels};
}

Built attention(const Isa& isa, const Reader& r) {
  AttentionSpec s{};
  s.channels = r.size("qkv_weight", 1);
  s.heads = r.option("heads");
  s.key_dim = r.option("key_dim");
  s.value_dim = r.option("value_dim");
  s.stride = r.option("stride", 1);
  if (s.heads < 1 || s.key_dim < 1 || s.value_dim < 1)
    r.fail("heads, key_dim and value_dim must be at least 1");
  if (s.stride != 1 && s.stride != 2) r.fail("the stride must be 1 or 2");
  if (s.stride == 2) {
    s.dw_weight = r.get("dw_weight", {s.channels, 3, 3});
    s.dw_bias = r.get("dw_bias", {s.channels});
  }
  const int values = r.channels(s.heads, s.value_dim), rows = 2 * r.channels(s.heads, s.key_dim) + values;
  s.qkv_weight = r.get("qkv_weight", {rows, s.channels});
  s.qkv_bias = r.get("qkv_bias", {rows});
  s.local_weight = r.get("local_weight", {values, 3, 3});
  s.local_bias = r.get("local_bias", {values});
  s.mix1_weight = r.get("mix1_weight", {s.heads, s.heads});
  s.mix2_weight = r.get("mix2_weight", {s.heads, s.heads});
  s.mix2_bias = r.get("mix2_bias", {s.heads});
  s.bias = r.bias(s.heads, 1);
  s.proj_weight = r.get("proj_weight", {s.channels, values});
  s.proj_bias = r.get("proj_bias", {s.channels});
  return {isa.attention(s), s.channels};
}

Built conv_downsample(const Isa& isa, const Reader& r) {
  const int out = r.size("weight", 0), in = r.size("weight", 1);
  return {isa.conv_downsample({in, out, r.get("weight", {out, in, 3, 3}), r.get("bias", {out})}), in};
}

Built attention_downsample(const Isa& isa, const Reader& r) {
  AttentionDownsampleSpec s{};
  s.in_channels = r.size("conv_weight", 1);
  s.out_channels = r.size("conv_weight", 0);
  s.heads = r.option("heads");
  s.key_dim = r.option("key_dim");
  s.value_dim = r.option("value_dim");
  if (s.heads < 1 || s.key_dim < 1 || s.value_dim < 1)
    r.fail("heads, key_dim and value_dim must be at least 1");
  const int keys = r.channels(s.heads, s.key_dim), values = r.channels(s.heads, s.value_dim);
  s.dw_weight = r.get("dw_weight", {s.in_channels, 3, 3});
  s.dw_bias = r.get("dw_bias", {s.in_channels});
  s.q_weight = r.get("q_weight", {keys, s.in_channels});
  s.q_bias = r.get("q_bias", {keys});
  s.kv_weight = r.get("kv_weight", {keys + values, s.in_channels});
  s.kv_bias = r.get("kv_bias", {keys + values});
  s.local_weight = r.get("local_weight", {values, 3, 3});
  s.local_bias = r.get("local_bias", {values});
  s.bias = r.bias(s.heads, 2);
  s.proj_weight = r.get("proj_weight", {s.out_channels, values});
  s.proj_bias = r.get("proj_bias", {s.out_channels});
  s.conv_weight = r.get("conv_weight", {s.out_channels, s.in_channels, 3, 3});
  s.conv_bias = r.get("conv_bias", {s.out_channels});
  return {isa.attention_downsample(s), s.in_channels};
}

Built head(const Isa& isa, const Reader& r) {
  const int classes = r.size("weight", 0), channels = r.size("weight", 1);
  return {isa.head({channels, classes, r.get("weight", {classes, channels}), r.get("bias", {classes})}),
          channels};
}

struct Kind {
  const char* name;
  Built (*build)(const Isa&, const Reader&);
};
constexpr Kind kKinds[] = {{"stem", stem},
                           {"ffn", ffn},
                           {"attention", attention},
                           {"conv_downsample", conv_downsample},
                           {"attention_downsample", attention_downsample},
                           {"head", head}};

}  // namespace

void add_block(Network& network, const std::string& kind, const Fields& fields) {
  for (const Kind& k : kKinds) {
    if (kind != k.name) continue;
    const ArenaScope scope(network.arena());
    const Built built = k.build(network.isa(), Reader(kind, fields));
    std::unique_ptr<Block> block(built.block);
    const int given = network.out_channels();
    if (given && given != built.in_channels) {
      throw Error(kind + ": reads " + std::to_string(built.in_channels) +
                  " channels, but the block before gives " + std::to_string(given));
    }
    network.add(std::move(block), built.in_channels);
    return;
  }
  throw Error("unknown kind of block '" + kind + "'");
}

}  // namespace effv2
