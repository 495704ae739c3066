// The fields of one block by name, and their reader: every shape is checked there, once.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "engine/spec.h"

namespace effv2 {

struct Tensor {
  const float* data;
  std::vector<std::int64_t> shape;
  bool half = false;  // its values were stored in 16 bits
};

struct Fields {
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::int64_t> options;
  bool halves = false;  // right operands of products are stored in 16 bits, and nothing else is
};

// Visits a spec (see engine/spec.h) and fills it. Throws Error, naming kind and field, where something is
// missing, misshapen, out of range, not finite, or stored in another number of bits than expected, and
// OverflowError where a value is beyond what a format holds.
class FieldReader {
 public:
  // largest: of the values that the format holds.
  FieldReader(std::string kind, const Fields& fields, float largest = std::numeric_limits<float>::max(),
              const char* format = "fp32")
      : kind_(std::move(kind)), fields_(fields), largest_(largest), format_(format) {}

  bool given(bool, std::initializer_list<const char*> layers) const;
  void size(int& value, const char* name, std::size_t axis) const;
  void kernel(int& value, const char* name, std::size_t axis, int least) const;
  void activation(Activation& value, Activation fallback);
  void choice(int& value, const char* name, std::initializer_list<int> values);
  void heads(int& count, int& key_dim, int& value_dim);
  int product(int heads, int each) const;
  void layer(Layer& layer, const std::string& name, std::int64_t outputs,
             std::initializer_list<std::int64_t> inner);
  void mixing(const float*& mix1_weight, Layer& mix2, int heads);
  void distances(AttentionBiasSpec& bias, int heads, int query_stride);
  // After the visit. Throws Error where there are fields that the spec did not ask for.
  void finish() const;

 private:
  int option(const std::string& name, std::int64_t fallback);
  void tensor(const float*& values, const std::string& name, const std::vector<std::int64_t>& shape,
              bool operand = false);
  const Tensor& named(const std::string& name) const;
  [[noreturn]] void fail(const std::string& why) const;

  std::string kind_;
  const Fields& fields_;
  float largest_;
  const char* format_;
  std::set<std::string> read_tensors_, read_options_;
};

// The activation of a name, as options have it: an index into kActivationNames. Throws Error for another
// name.
std::int64_t activation_option(const std::string& name);

// How a layer's tensors are called: "fc1" has fc1_weight; "" has weight.
inline std::string field_of(const std::string& layer, const char* part) {
  return layer.empty() ? part : layer + "_" + part;
}

}  // namespace effv2
