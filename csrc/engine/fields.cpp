#include "engine/fields.h"

#include <algorithm>
#include <cmath>

#include "engine/errors.h"

namespace effv2 {
namespace {

constexpr std::int64_t kLargest = 1 << 20;     // of a size, and of an option
constexpr std::int64_t kMostValues = 1 << 28;  // of a tensor
constexpr int kLargestKernel = 7;

std::string text(const std::vector<std::int64_t>& shape) {
  std::string s = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + (shape.size() == 1 ? ",)" : ")");
}

}  // namespace

bool FieldReader::given(bool, std::initializer_list<const char*> layers) const {
  for (const char* layer : layers) {
    for (const char* part : {"weight", "bias"}) {
      if (fields_.tensors.count(field_of(layer, part))) return true;
    }
  }
  return false;
}

void FieldReader::size(int& value, const char* name, std::size_t axis) const {
  const Tensor& t = named(name);
  if (axis >= t.shape.size())
    fail(std::string(name) + " has the shape " + text(t.shape) + ", which has too few axes");
  if (t.shape[axis] < 1 || t.shape[axis] > kLargest)
    fail(std::string(name) + " has the shape " + text(t.shape));
  value = static_cast<int>(t.shape[axis]);
}

void FieldReader::kernel(int& value, const char* name, std::size_t axis, int least) const {
  size(value, name, axis);
  if (value % 2 == 0 || value < least || value > kLargestKernel) {
    fail(std::string(name) + " has the shape " + text(named(name).shape) + ", and windows are of " +
         (least == 1 ? "1, " : "") + "3, 5 or 7");
  }
}

void FieldReader::activation(Activation& value, Activation fallback) {
  constexpr std::int64_t kCount = sizeof kActivationNames / sizeof *kActivationNames;
  const int index = option("activation", static_cast<std::int64_t>(fallback));
  if (index >= kCount) fail("the option activation is out of range");
  value = static_cast<Activation>(index);
}

void FieldReader::choice(int& value, const char* name, std::initializer_list<int> values) {
  value = option(name, *values.begin());
  if (std::find(values.begin(), values.end(), value) != values.end()) return;
  std::string allowed;
  for (const int v : values) allowed += (allowed.empty() ? "" : " or ") + std::to_string(v);
  fail("the " + std::string(name) + " must be " + allowed);
}

void FieldReader::heads(int& count, int& key_dim, int& value_dim) {
  count = option("heads", -1);
  key_dim = option("key_dim", -1);
  value_dim = option("value_dim", -1);
  if (count < 1 || key_dim < 1 || value_dim < 1) fail("heads, key_dim and value_dim must be at least 1");
}

int FieldReader::product(int heads, int each) const {
  const std::int64_t count = std::int64_t{heads} * each;
  if (count > kLargest) {
    fail("the options give " + std::to_string(heads) + " heads of " + std::to_string(each) +
         " channels, which is too many");
  }
  return static_cast<int>(count);
}

void FieldReader::layer(Layer& layer, const std::string& name, std::int64_t outputs,
                        std::initializer_list<std::int64_t> inner) {
  std::vector<std::int64_t> shape = {outputs};
  shape.insert(shape.end(), inner);
  const bool depthwise = inner.size() == 2;  // without inputs to sum over
  tensor(layer.weight, field_of(name, "weight"), shape, !depthwise);
  tensor(layer.bias, field_of(name, "bias"), {outputs});
}

// Logits and probabilities are mixed in float32, whatever products multiply.
void FieldReader::mixing(const float*& mix1_weight, Layer& mix2, int heads) {
  tensor(mix1_weight, "mix1_weight", {heads, heads});
  tensor(mix2.weight, "mix2_weight", {heads, heads});
  tensor(mix2.bias, "mix2_bias", {heads});
}

void FieldReader::tensor(const float*& values, const std::string& name,
                         const std::vector<std::int64_t>& shape, bool operand) {
  const Tensor& t = named(name);
  read_tensors_.insert(name);
  const bool half = fields_.halves && operand;
  if (t.half != half) {
    fail(name + " is stored in " + (t.half ? "16" : "32") + " bits, expected " + (half ? "16" : "32"));
  }
  if (t.shape != shape) fail(name + " has the shape " + text(t.shape) + ", expected " + text(shape));
  std::int64_t count = 1;
  for (const std::int64_t n : shape) {
    if (n > kLargest || count > kMostValues / n)
      fail(name + " has the shape " + text(shape) + ", which is too large");
    count *= n;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    if (std::fabs(t.data[i]) <= largest_) continue;
    if (!std::isfinite(t.data[i])) fail(name + " holds a value that is not finite");
    throw OverflowError(kind_ + ": " + name + " holds the value " + shown(t.data[i]) +
                        ", and the largest of " + format_ + " is " + shown(largest_) + "; use fp32");
  }
  values = t.data;
}

void FieldReader::distances(AttentionBiasSpec& bias, int heads, int query_stride) {
  bias.heads = heads;
  bias.query_stride = query_stride;
  size(bias.rows, "bias", 1);
  size(bias.cols, "bias", 2);
  tensor(bias.table, "bias", {heads, bias.rows, bias.cols});
}

void FieldReader::finish() const {
  const auto check = [&](const std::string& name, const std::set<std::string>& read) {
    if (!read.count(name)) fail("a block with these options has no field " + shown(name));
  };
  for (const auto& field : fields_.tensors) check(field.first, read_tensors_);
  for (const auto& field : fields_.options) check(field.first, read_options_);
}

int FieldReader::option(const std::string& name, std::int64_t fallback) {
  read_options_.insert(name);
  const auto found = fields_.options.find(name);
  const std::int64_t value = found == fields_.options.end() ? fallback : found->second;
  if (value < 0 || value > kLargest) fail("the option " + name + " is missing or out of range");
  return static_cast<int>(value);
}

const Tensor& FieldReader::named(const std::string& name) const {
  const auto found = fields_.tensors.find(name);
  if (found == fields_.tensors.end()) fail("the tensor " + name + " is missing");
  return found->second;
}

std::int64_t activation_option(const std::string& name) {
  std::string known;
  std::int64_t index = 0;
  for (const char* one : kActivationNames) {
    if (name == one) return index;
    known += (index++ ? ", " : "") + std::string(one);
  }
  throw Error("unknown activation " + shown(name) + "; known: " + known);
}

void FieldReader::fail(const std::string& why) const { throw Error(kind_ + ": " + why); }

}  // namespace effv2
