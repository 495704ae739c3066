#include "samples.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <stdexcept>

namespace effv2::tests {
namespace {

// Visits a spec whose sizes and options are set (see engine/spec.h), and makes random tensors for its fields.
// Weights are scaled by their fan-in.
class Maker {
 public:
  Maker(Random& random, Sample& sample) : random_(random), sample_(sample) {}

  bool given(bool value, std::initializer_list<const char*>) { return value; }
  void size(int&, const char*, std::size_t) {}
  void kernel(int&, const char*, std::size_t, int) {}
  void activation(Activation& value, Activation) {
    sample_.options["activation"] = static_cast<std::int64_t>(value);
  }
  void choice(int& value, const char* name, std::initializer_list<int>) { sample_.options[name] = value; }
  void heads(int& count, int& key_dim, int& value_dim) {
    sample_.options["heads"] = count;
    sample_.options["key_dim"] = key_dim;
    sample_.options["value_dim"] = value_dim;
  }
  int product(int heads, int each) { return heads * each; }
  void layer(Layer& layer, const std::string& name, int outputs, std::initializer_list<std::int64_t> inner) {
    std::vector<std::int64_t> shape = {outputs};
    shape.insert(shape.end(), inner);
    tensor(layer.weight, field_of(name, "weight"), shape);
    normal(field_of(name, "bias"), {outputs}, 0.3);
  }
  void mixing(const float*& mix1_weight, Layer& mix2, int heads) {
    tensor(mix1_weight, "mix1_weight", {heads, heads});
    layer(mix2, "mix2", heads, {heads});
  }
  void distances(AttentionBiasSpec& bias, int heads, int) {
    normal("bias", {heads, bias.rows, bias.cols}, 1.0);
  }

 private:
  void tensor(const float*&, const std::string& name, const std::vector<std::int64_t>& shape) {
    double fan_in = 1;
    for (std::size_t i = 1; i < shape.size(); ++i) fan_in *= static_cast<double>(shape[i]);
    normal(name, shape, 1 / std::sqrt(fan_in));
  }
  void normal(const std::string& name, const std::vector<std::int64_t>& shape, double deviation) {
    std::int64_t count = 1;
    for (const std::int64_t n : shape) count *= n;
    sample_.tensors[name] = {shape, random_.normal(count, deviation)};
  }

  Random& random_;
  Sample& sample_;
};

#define EFFV2_KIND_OF(kind, Spec) \
  const char* kind_of(const Spec&) { return #kind; }
EFFV2_BLOCKS(EFFV2_KIND_OF)
#undef EFFV2_KIND_OF

template <class Spec>
Sample sample_of(Random& random, Spec spec, const std::string& sizes) {
  const std::string kind = kind_of(spec);
  Sample sample{kind, kind + " " + sizes, spec.in_channels, {}, {}};
  Maker maker(random, sample);
  spec.visit(maker);
  return sample;
}

// Calls f with the spec that the sample's kind has, and with the factory of that kind.
template <class Function>
auto with_spec(const Sample& sample, Function f) {
  const Fields fields = sample.fields();
  FieldReader reader(sample.kind, fields);
#define EFFV2_CALL(name, Spec)     \
  if (sample.kind == #name) {      \
    Spec spec{};                   \
    spec.visit(reader);            \
    return f(spec, &Target::name); \
  }
  EFFV2_BLOCKS(EFFV2_CALL)
#undef EFFV2_CALL
  throw std::logic_error("no block is a " + sample.kind);
}

// The first of a projection's rows make queries, which are scaled: logits are of order 1.
void scale_queries(Sample& sample, const std::string& projection, HeadSizes sizes) {
  const auto queries = static_cast<std::size_t>(sizes.heads * sizes.key_dim);
  for (const char* part : {"weight", "bias"}) {
    Weight& w = sample.tensors.at(field_of(projection, part));
    const std::size_t each = w.values.size() / static_cast<std::size_t>(w.shape[0]);
    for (std::size_t i = 0; i < queries * each; ++i)
      w.values[i] = static_cast<float>(w.values[i] / std::sqrt(sizes.key_dim));
  }
}

std::string text(HeadSizes s) {
  return std::to_string(s.heads) + " heads x " + std::to_string(s.key_dim) + "/" +
         std::to_string(s.value_dim);
}

std::string text(BiasTable table) {
  return table.resize ? ", bias of " + std::to_string(table.rows) + "x" + std::to_string(table.cols) : "";
}

template <class Spec>
Spec with_heads(HeadSizes sizes, BiasTable table) {
  Spec spec{};
  spec.heads = sizes.heads;
  spec.key_dim = sizes.key_dim;
  spec.value_dim = sizes.value_dim;
  spec.bias.rows = table.rows;
  spec.bias.cols = table.cols;
  spec.bias.resize = table.resize;
  return spec;
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

std::unique_ptr<Block> Sample::build(const Target& target) const {
  return with_spec(
      *this, [&](const auto& spec, auto factory) { return std::unique_ptr<Block>((target.*factory)(spec)); });
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
  StemSpec spec{};
  spec.in_channels = in;
  spec.mid_channels = mid;
  spec.out_channels = out;
  spec.activation = Activation::gelu;
  return sample_of(random, spec, std::to_string(in) + "-" + std::to_string(mid) + "-" + std::to_string(out));
}

Sample ffn_sample(Random& random, int channels, int hidden) {
  return bottleneck_sample(random, channels, hidden, channels, {true, 3, 1, true, Activation::gelu});
}

Sample bottleneck_sample(Random& random, int channels, int hidden, int out, const Bottleneck& options) {
  FfnSpec spec{};
  spec.expands = options.expands;
  spec.in_channels = channels;
  spec.hidden = options.expands ? hidden : channels;
  spec.out_channels = out;
  spec.kernel = options.kernel;
  spec.stride = options.stride;
  spec.residual = options.residual;
  spec.activation = options.activation;
  std::string sizes =
      std::to_string(channels) + "-" + std::to_string(spec.hidden) + "-" + std::to_string(out);
  sizes += ", window of " + std::to_string(options.kernel) + ", stride " + std::to_string(options.stride) +
           (options.expands ? "" : ", without expansion") + (options.residual ? ", residual" : "") + ", " +
           kActivationNames[static_cast<int>(options.activation)];
  return sample_of(random, spec, sizes);
}

Sample attention_sample(Random& random, int channels, HeadSizes sizes, int stride, BiasTable bias,
                        const AttentionParts& parts) {
  AttentionSpec spec = with_heads<AttentionSpec>(sizes, bias);
  spec.in_channels = channels;
  spec.stride = stride;
  spec.has_mixing = parts.mixing;
  spec.has_bias = parts.bias;
  spec.has_local = parts.local;
  spec.activation = parts.activation;
  const std::string left_out = std::string(parts.mixing ? "" : ", no talking heads") +
                               (parts.bias ? "" : ", no bias") + (parts.local ? "" : ", no local branch");
  Sample sample =
      sample_of(random, spec,
                std::to_string(channels) + ", " + text(sizes) + ", stride " + std::to_string(stride) +
                    text(bias) + left_out + ", " + kActivationNames[static_cast<int>(parts.activation)]);
  scale_queries(sample, "qkv", sizes);
  if (parts.mixing) sample.enlarge("mix2_bias", 0.07f);  // multiplies the sum of the values over all keys
  return sample;
}

Sample conv_sample(Random& random, int in, int out, const Window& window) {
  ConvSpec spec{};
  spec.in_channels = in;
  spec.out_channels = out;
  spec.kernel = window.kernel;
  spec.stride = window.stride;
  spec.activation = window.activation;
  return sample_of(random, spec,
                   std::to_string(in) + "-" + std::to_string(out) + ", window of " +
                       std::to_string(window.kernel) + ", stride " + std::to_string(window.stride) + ", " +
                       kActivationNames[static_cast<int>(window.activation)]);
}

Sample attention_downsample_sample(Random& random, int in, int out, HeadSizes sizes, BiasTable bias) {
  AttentionDownsampleSpec spec = with_heads<AttentionDownsampleSpec>(sizes, bias);
  spec.activation = Activation::gelu;
  spec.in_channels = in;
  spec.out_channels = out;
  Sample sample = sample_of(random, spec,
                            std::to_string(in) + "-" + std::to_string(out) + ", " + text(sizes) + text(bias));
  scale_queries(sample, "q", sizes);
  return sample;
}

Sample head_sample(Random& random, int channels, int classes) {
  HeadSpec spec{};
  spec.in_channels = channels;
  spec.classes = classes;
  Sample sample = sample_of(random, spec, std::to_string(channels) + "-" + std::to_string(classes));
  sample.enlarge("bias", 3.3f);  // a few logits near 0 would have a large relative error
  return sample;
}

}  // namespace effv2::tests
