#include "storage/container.h"

#include <algorithm>

#include "storage/errors.h"
#include "storage/json.h"

namespace effv2 {
namespace {

constexpr std::size_t kLengthBytes = 8;
constexpr std::uint64_t kMostHeader = 1 << 24;  // bytes; that of a network of a hundred blocks has 100,000
constexpr const char* kMetadata = "__metadata__";

// Of the header, as a little-endian number in front of it.
std::size_t header_length(const std::byte* data, std::size_t bytes) {
  if (bytes < kLengthBytes) throw FormatError("it has " + std::to_string(bytes) + " bytes");
  std::uint64_t length = 0;
  for (std::size_t i = kLengthBytes; i > 0; --i)
    length = length << 8 | static_cast<std::uint64_t>(data[i - 1]);
  if (length > kMostHeader) throw FormatError("its header is too long");
  if (length > bytes - kLengthBytes) throw FormatError("it ends within its header");
  return static_cast<std::size_t>(length);
}

// end: of what the header says of the tensor, counted from the end of the header.
StoredTensor tensor_of(const Json& entry, std::int64_t* begin, std::int64_t* end) {
  object_with(entry, "a tensor", {"dtype", "shape", "data_offsets"});
  StoredTensor tensor{string(entry["dtype"], "a tensor's dtype"), {}, nullptr, 0};
  for (const Json& n : array(entry["shape"], "a tensor's shape")) {
    tensor.shape.push_back(size(n, "a size of a tensor"));
  }
  const Json::array_t& offsets = array(entry["data_offsets"], "a tensor's offsets");
  if (offsets.size() != 2) throw FormatError("a tensor needs two offsets");
  *begin = size(offsets[0], "an offset");
  *end = size(offsets[1], "an offset");
  if (*begin > *end) throw FormatError("a tensor ends before it begins");
  tensor.bytes = *end - *begin;
  return tensor;
}

// Bytes of a tensor of this shape; -1 where they do not fit an integer.
std::int64_t bytes_of(const std::vector<std::int64_t>& shape, std::int64_t each) {
  std::int64_t bytes = each;
  for (const std::int64_t n : shape) {
    if (__builtin_mul_overflow(bytes, n, &bytes)) return -1;
  }
  return bytes;
}

}  // namespace

Container read_container(const std::byte* data, std::size_t bytes) {
  const std::size_t length = header_length(data, bytes);
  const Json header = parsed_object({reinterpret_cast<const char*>(data + kLengthBytes), length});
  const std::byte* const values = data + kLengthBytes + length;
  const auto value_bytes = static_cast<std::int64_t>(bytes - kLengthBytes - length);

  Container container;
  struct Extent {
    std::int64_t begin, end;
    StoredTensor* tensor;
  };
  std::vector<Extent> extents;
  for (const auto& [name, entry] : header.items()) {
    if (name == kMetadata) {
      if (!entry.is_object()) throw FormatError("its metadata must be an object");
      for (const auto& [key, value] : entry.items()) container.metadata[key] = string(value, "metadata");
      continue;
    }
    Extent extent{};
    extent.tensor =
        &container.tensors.emplace(name, tensor_of(entry, &extent.begin, &extent.end)).first->second;
    extents.push_back(extent);
  }
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  std::int64_t end = 0;
  for (const Extent& extent : extents) {
    if (extent.begin != end) throw FormatError("its tensors overlap, or do not lie one behind the other");
    end = extent.end;
  }
  if (end != value_bytes) {
    throw FormatError("its tensors end at byte " + std::to_string(end) + " of " +
                      std::to_string(value_bytes));
  }
  for (const Extent& extent : extents) extent.tensor->data = values + extent.begin;
  return container;
}

void check_values(const Container& container) {
  for (const auto& [name, tensor] : container.tensors) {
    const std::int64_t each = tensor.dtype == "F32" ? 4 : tensor.dtype == "F16" ? 2 : 0;
    if (!each)
      throw FormatError(shown(name) + " is stored as " + shown(tensor.dtype) + "; expected F32 or F16");
    if (bytes_of(tensor.shape, each) != tensor.bytes) {
      throw FormatError(shown(name) + " has " + std::to_string(tensor.bytes) +
                        " bytes, which its shape does not fit");
    }
  }
}

}  // namespace effv2
