#include "samples.h"

#include <algorithm>
#include <cmath>

namespace effv2::tests {
namespace {

// Adds tensors of random numbers; matrices are scaled by their fan-in.
class Maker {
 public:
  Maker(Random& random, const std::string& kind, const std::string& sizes, int in_channels)
      : random_(random), sample_{kind, kind + " " + sizes, in_channels, {}, {}} {}

  void weight(const std::string& name, std::vector<std::int64_t> shape) {
    double fan_in = 1;
    for (std::size_t i = 1; i < shape.size(); ++i) fan_in *= static_cast<double>(shape[i]);
    normal(name, std::move(shape), 1 / std::sqrt(fan_in));
  }
  void bias(const std::string& name, std::int64_t count) { normal(name, {count}, 0.3); }
  void normal(const std::string& name, std::vector<std::int64_t> shape, double deviation) {
    std::int64_t count = 1;
    for (const std::int64_t n : shape) count *= n;
    sample_.tensors[name] = {std::move(shape), random_.normal(count, deviation)};
  }
  void attention_bias(int heads, BiasTable table) {
    normal("bias", {heads, table.rows, table.cols}, 1.0);
    sample_.options["resize_bias"] = table.resize;
  }
  void head_sizes(HeadSizes sizes) {
    sample_.options["heads"] = sizes.heads;
    sample_.options["key_dim"] = sizes.key_dim;
    sample_.options["value_dim"] = sizes.value_dim;
  }
  // The first rows of a projection make queries, which are scaled: logits are of order 1.
  void scale_queries(const std::string& projection, HeadSizes sizes) {
    const double scale = 1 / std::sqrt(sizes.key_dim);
    for (const char* part : {"_weight", "_bias"}) {
      Weight& w = sample_.tensors[projection + part];
      const std::size_t queries = w.values.size() / static_cast<std::size_t>(w.shape[0]) *
                                  static_cast<std::size_t>(sizes.heads * sizes.key_dim);
      for (std::size_t i = 0; i < queries; ++i) w.values[i] = static_cast<float>(w.values[i] * scale);
    }
  }
  void option(const std::string& name, std::int64_t value) { sample_.options[name] = value; }
  Sample take() { return std::move(sample_); }

 private:
  Random& random_;
  Sample sample_;
};

// Reads a sample as the engine's plain structs.
class Reader {
 public:
  explicit Reader(const Sample& sample) : sample_(sample) {}
  const float* operator[](const char* name) const { return sample_.tensors.at(name).values.data(); }
  int size(const char* name, std::size_t axis) const {
    return static_cast<int>(sample_.tensors.at(name).shape.at(axis));
  }
  int option(const char* name) const { return static_cast<int>(sample_.options.at(name)); }
  AttentionBiasSpec bias(int query_stride) const {
    return {(*this)["bias"], option("heads"), size("bias", 1),
            size("bias", 2), query_stride,    option("resize_bias") != 0};
  }

 private:
  const Sample& sample_;
};

// Calls f with the spec that the sample's kind has, and with the factory of that kind.
template <class Function>
auto with_spec(const Sample& sample, Function f) {
  const Reader r(sample);
  if (sample.kind == "stem") {
    const StemSpec s{sample.in_channels, r.size("conv1_weight", 0), r.size("conv2_weight", 0),
                     r["conv1_weight"],  r["conv1_bias"],           r["conv2_weight"],
                     r["conv2_bias"]};
    return f(s, &Isa::stem);
  }
  if (sample.kind == "ffn") {
    const FfnSpec s{
        sample.in_channels, r.size("fc1_weight", 0), r["fc1_weight"], r["fc1_bias"], r["dw_weight"],
        r["dw_bias"],       r["fc2_weight"],         r["fc2_bias"]};
    return f(s, &Isa::ffn);
  }
  if (sample.kind == "attention") {
    AttentionSpec s{};
    s.channels = sample.in_channels;
    s.heads = r.option("heads");
    s.key_dim = r.option("key_dim");
    s.value_dim = r.option("value_dim");
    s.stride = r.option("stride");
    if (s.stride == 2) {
      s.dw_weight = r["dw_weight"];
      s.dw_bias = r["dw_bias"];
    }
    s.qkv_weight = r["qkv_weight"];
    s.qkv_bias = r["qkv_bias"];
    s.local_weight = r["local_weight"];
    s.local_bias = r["local_bias"];
    s.mix1_weight = r["mix1_weight"];
    s.mix2_weight = r["mix2_weight"];
    s.mix2_bias = r["mix2_bias"];
    s.bias = r.bias(1);
    s.proj_weight = r["proj_weight"];
    s.proj_bias = r["proj_bias"];
    return f(s, &Isa::attention);
  }
  if (sample.kind == "conv_downsample") {
    const ConvDownsampleSpec s{sample.in_channels, r.size("weight", 0), r["weight"], r["bias"]};
    return f(s, &Isa::conv_downsample);
  }
  if (sample.kind == "attention_downsample") {
    AttentionDownsampleSpec s{};
    s.in_channels = sample.in_channels;
    s.out_channels = r.size("conv_weight", 0);
    s.heads = r.option("heads");
    s.key_dim = r.option("key_dim");
    s.value_dim = r.option("value_dim");
    s.dw_weight = r["dw_weight"];
    s.dw_bias = r["dw_bias"];
    s.q_weight = r["q_weight"];
    s.q_bias = r["q_bias"];
    s.kv_weight = r["kv_weight"];
    s.kv_bias = r["kv_bias"];
    s.local_weight = r["local_weight"];
    s.local_bias = r["local_bias"];
    s.bias = r.bias(2);
    s.proj_weight = r["proj_weight"];
    s.proj_bias = r["proj_bias"];
    s.conv_weight = r["conv_weight"];
    s.conv_bias = r["conv_bias"];
    return f(s, &Isa::attention_downsample);
  }
  const HeadSpec s{sample.in_channels, r.size("weight", 0), r["weight"], r["bias"]};
  return f(s, &Isa::head);
}

std::string text(HeadSizes s) {
  return std::to_string(s.heads) + " heads x " + std::to_string(s.key_dim) + "/" +
         std::to_string(s.value_dim);
}

std::string text(BiasTable table) {
  return table.resize ? ", bias of " + std::to_string(table.rows) + "x" + std::to_string(table.cols) : "";
}

}  // namespace

std::vector<float> Random::normal(std::int64_t count, double deviation) {
  std::normal_distribution<double> distribution(0.0, deviation);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = static_cast<float>(distribution(engine_));
  return values;
}

std::vector<float> Random::integers(std::int64_t count, int low, int high) {
  std::uniform_int_distribution<int> distribution(low, high);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = static_cast<float>(distribution(engine_));
  return values;
}

std::unique_ptr<Block> Sample::build(const Isa& isa) const {
  return with_spec(
      *this, [&](const auto& spec, auto factory) { return std::unique_ptr<Block>((isa.*factory)(spec)); });
}

Exact Sample::reference(const Exact& x) const {
  return with_spec(*this, [&](const auto& spec, auto) { return tests::reference(spec, x); });
}

Fields Sample::fields() const {
  Fields fields;
  for (const auto& [field, weight] : tensors) fields.tensors[field] = {weight.values.data(), weight.shape};
  fields.options = options;
  return fields;
}

float Sample::enlarge(const std::string& tensor, float factor) {
  float largest = 0;
  for (float& value : tensors.at(tensor).values) {
    value *= factor;
    largest = std::max(largest, std::abs(value));
  }
  return largest;
}

void Sample::set_integers(const std::string& tensor, Random& random, int low, int high, int factor) {
  std::vector<float>& values = tensors.at(tensor).values;
  values = random.integers(static_cast<std::int64_t>(values.size()), low, high);
  for (float& value : values) value *= static_cast<float>(factor);
}

Sample stem_sample(Random& random, int in, int mid, int out) {
  Maker m(random, "stem", std::to_string(in) + "-" + std::to_string(mid) + "-" + std::to_string(out), in);
  m.weight("conv1_weight", {mid, in, 3, 3});
  m.bias("conv1_bias", mid);
  m.weight("conv2_weight", {out, mid, 3, 3});
  m.bias("conv2_bias", out);
  return m.take();
}

Sample ffn_sample(Random& random, int channels, int hidden) {
  Maker m(random, "ffn", std::to_string(channels) + "-" + std::to_string(hidden), channels);
  m.weight("fc1_weight", {hidden, channels});
  m.bias("fc1_bias", hidden);
  m.weight("dw_weight", {hidden, 3, 3});
  m.bias("dw_bias", hidden);
  m.weight("fc2_weight", {channels, hidden});
  m.bias("fc2_bias", channels);
  return m.take();
}

Sample attention_sample(Random& random, int channels, HeadSizes sizes, int stride, BiasTable bias) {
  const int keys = sizes.heads * sizes.key_dim, values = sizes.heads * sizes.value_dim;
  Maker m(random, "attention",
          std::to_string(channels) + ", " + text(sizes) + ", stride " + std::to_string(stride) + text(bias),
          channels);
  m.head_sizes(sizes);
  m.option("stride", stride);
  m.weight("qkv_weight", {2 * keys + values, channels});
  m.bias("qkv_bias", 2 * keys + values);
  m.scale_queries("qkv", sizes);
  m.weight("local_weight", {values, 3, 3});
  m.bias("local_bias", values);
  m.weight("mix1_weight", {sizes.heads, sizes.heads});
  m.attention_bias(sizes.heads, bias);
  m.weight("mix2_weight", {sizes.heads, sizes.heads});
  m.normal("mix2_bias", {sizes.heads}, 0.02);  // multiplies the sum of the values over all keys
  m.weight("proj_weight", {channels, values});
  m.bias("proj_bias", channels);
  if (stride == 2) {
    m.weight("dw_weight", {channels, 3, 3});
    m.bias("dw_bias", channels);
  }
  return m.take();
}

Sample conv_downsample_sample(Random& random, int in, int out) {
  Maker m(random, "conv_downsample", std::to_string(in) + "-" + std::to_string(out), in);
  m.weight("weight", {out, in, 3, 3});
  m.bias("bias", out);
  return m.take();
}

Sample attention_downsample_sample(Random& random, int in, int out, HeadSizes sizes, BiasTable bias) {
  const int keys = sizes.heads * sizes.key_dim, values = sizes.heads * sizes.value_dim;
  Maker m(random, "attention_downsample",
          std::to_string(in) + "-" + std::to_string(out) + ", " + text(sizes) + text(bias), in);
  m.head_sizes(sizes);
  m.weight("dw_weight", {in, 3, 3});
  m.bias("dw_bias", in);
  m.weight("q_weight", {keys, in});
  m.bias("q_bias", keys);
  m.scale_queries("q", sizes);
  m.weight("kv_weight", {keys + values, in});
  m.bias("kv_bias", keys + values);
  m.weight("local_weight", {values, 3, 3});
  m.bias("local_bias", values);
  m.attention_bias(sizes.heads, bias);
  m.weight("proj_weight", {out, values});
  m.bias("proj_bias", out);
  m.weight("conv_weight", {out, in, 3, 3});
  m.bias("conv_bias", out);
  return m.take();
}

Sample head_sample(Random& random, int channels, int classes) {
  Maker m(random, "head", std::to_string(channels) + "-" + std::to_string(classes), channels);
  m.weight("weight", {classes, channels});
  m.normal("bias", {classes}, 1.0);  // a few logits near 0 would have a large relative error
  return m.take();
}

}  // namespace effv2::tests
