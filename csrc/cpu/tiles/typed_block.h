// A block whose maps are in the target's format.
#pragma once

#include "cpu/target.h"
#include "engine/block.h"
#include "engine/spec.h"

namespace effv2::EFFV2_TARGET {

// A stored map; strides in values.
struct Input {
  const Stored* data;
  std::int64_t channel_stride;
  std::int64_t row_stride;
  std::int64_t pixel_stride;
};

class TypedBlock : public Block {
 public:
  void run(const MapView& x, void* y, Map in, const void* prepared, const Scratch& scratch,
           const Team& team) const final {
    const Input input{static_cast<const Stored*>(x.data), x.channel_stride, x.row_stride, x.pixel_stride};
    run(input, static_cast<Stored*>(y), in, prepared, scratch, team);
  }

 private:
  virtual void run(const Input& x, Stored* y, Map in, const void* prepared, const Scratch& scratch,
                   const Team& team) const = 0;
};

}  // namespace effv2::EFFV2_TARGET
