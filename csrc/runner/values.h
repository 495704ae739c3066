// Floats as values of a network's dtype, and back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace effv2::runner {

class Values {
 public:
  Values() = default;
  // So many, of this dtype.
  Values(std::size_t count, const std::string& dtype);
  // Rounded to nearest, ties to even; of fp32 they are taken as they are. Throws Failure where a finite value
  // is beyond what the dtype holds.
  Values(std::vector<float> values, const std::string& dtype);

  void* data() { return back_ ? static_cast<void*>(narrow_.data()) : wide_.data(); }
  std::size_t size() const { return back_ ? narrow_.size() : wide_.size(); }
  std::size_t bytes() const { return wide_.size() * sizeof(float) + narrow_.size() * sizeof(std::uint16_t); }
  // Exactly.
  float operator[](std::size_t i) const { return back_ ? back_(narrow_[i]) : wide_[i]; }

 private:
  std::vector<float> wide_;
  std::vector<std::uint16_t> narrow_;
  float (*back_)(std::uint16_t) = nullptr;  // of a dtype of 16 bits
};

}  // namespace effv2::runner
