// Scratch memory, laid out by one piece of code that counts or carves it; and stored maps as products take
// and make them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/target.h"
#include "engine/memory.h"

namespace effv2::EFFV2_TARGET {

// Hands out parts of a piece of memory, one behind the other on cache lines of their own; without memory it
// only counts them.
class Carver {
 public:
  explicit Carver(void* memory = nullptr) : memory_(static_cast<std::byte*>(memory)) {}

  template <class T>
  T* take(std::int64_t count) {
    std::byte* part = memory_ ? memory_ + bytes_ : nullptr;
    bytes_ += aligned_bytes(count * static_cast<std::int64_t>(sizeof(T)));
    return reinterpret_cast<T*>(part);
  }
  std::int64_t bytes() const { return bytes_; }

 private:
  std::byte* memory_;
  std::int64_t bytes_ = 0;
};

// The bytes that a layout takes: a function of a Carver.
template <class Layout>
inline std::int64_t counted(Layout layout) {
  Carver carver;
  layout(carver);
  return carver.bytes();
}

// Values that are stored, for products to read, and back. Where both are of one type, all of this is nothing:
// the map itself is read and written.
inline constexpr std::int64_t converted(std::int64_t values) { return kStoredAsOperands ? 0 : values; }

template <class From, class To>
inline void convert(const From* from, std::int64_t values, To* to) {
  if constexpr (std::is_same_v<From, To>) {
    std::memcpy(to, from, static_cast<std::size_t>(values) * sizeof(To));
  } else {
    for (; values >= kLanes; values -= kLanes, from += kLanes, to += kLanes) store(to, load(from));
    if (values > 0) store_n(to, load_n(from, static_cast<int>(values)), static_cast<int>(values));
  }
}

// room: of converted(values).
template <class From>
inline const Operand* operands(const From* map, std::int64_t values, Operand* room) {
  if constexpr (std::is_same_v<From, Operand>) {
    return map;
  } else {
    convert(map, values, room);
    return room;
  }
}
// Where results wait to be stored; they are, by commit().
template <class To>
inline Operand* staged(To* map, Operand* room) {
  if constexpr (std::is_same_v<To, Operand>) {
    return map;
  } else {
    return room;
  }
}
template <class To>
inline void commit(const Operand* room, std::int64_t values, To* map) {
  if constexpr (!std::is_same_v<To, Operand>) convert(room, values, map);
}

}  // namespace effv2::EFFV2_TARGET
