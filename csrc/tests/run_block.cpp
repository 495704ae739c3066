#include "run_block.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <thread>

#include "storage/half.h"

namespace effv2::tests {
namespace {

constexpr int kTeams[] = {1, 2, 3, 5};

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

bool in_halves(const Target& target) { return target.value_bytes == 2; }

bool is_fp16(const Target& target) { return std::strcmp(target.format, "fp16") == 0; }

float of_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// To the nearest, ties to even, in the target's format.
std::uint16_t half_of(const Target& target, float value) {
  const std::uint32_t bits = bits_of(value);
  if (!is_fp16(target)) {
    if (std::isnan(value)) return 0x7fc0;
    return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  const std::uint32_t sign = bits >> 16 & 0x8000;
  if (std::isnan(value)) return 0x7e00;
  if (value == 0) return static_cast<std::uint16_t>(sign);  // which has no exponent
  if (std::fabs(value) >= 65520) return static_cast<std::uint16_t>(sign | 0x7c00);
  // Steps between halves: of 2^-24 below the least exponent, else of 2^-10 of the leading bit.
  int exponent;
  std::frexp(value, &exponent);
  const int step = std::max(exponent - 11, -24);
  const float steps = std::nearbyint(std::ldexp(std::fabs(value), -step));
  return static_cast<std::uint16_t>(sign | (static_cast<std::uint32_t>(steps) + ((step + 24) << 10)));
}
float of_half(const Target& target, std::uint16_t half) {
  return is_fp16(target) ? float_of_half(half) : of_bits(std::uint32_t{half} << 16);
}

void put(const Target& target, Guarded& memory, std::int64_t at, float value) {
  if (!in_halves(target)) {
    memory.data()[at] = value;
    return;
  }
  const std::uint16_t half = half_of(target, value);
  std::memcpy(reinterpret_cast<char*>(memory.data()) + 2 * at, &half, 2);
}

}  // namespace

Guarded room_for(const Target& target, std::int64_t values) {
  Guarded memory((values * target.value_bytes + 3) / 4);
  if (in_halves(target)) {
    for (std::int64_t i = 0; i < values; ++i) put(target, memory, i, std::nanf(""));
  }
  return memory;
}

namespace {

// A map with the given distances between rows, pixels and channels, and an offset of its first element.
Strided strided(const Target& target, const std::vector<float>& x, Map size, std::int64_t row,
                std::int64_t pixel, std::int64_t channel, std::int64_t offset = 0) {
  const std::int64_t extent =
      offset + (size.height - 1) * row + (size.width - 1) * pixel + (size.channels - 1) * channel + 1;
  Strided map{room_for(target, extent), {}};
  const char* const data = reinterpret_cast<const char*>(map.memory.data());
  map.view = {data + offset * target.value_bytes, channel, row, pixel};
  const float* from = x.data();
  for (int y = 0; y < size.height; ++y) {
    for (int column = 0; column < size.width; ++column) {
      for (int c = 0; c < size.channels; ++c) {
        put(target, map.memory, offset + y * row + column * pixel + c * channel, *from++);
      }
    }
  }
  return map;
}

// Bytes as whole floats.
std::int64_t floats(std::int64_t bytes) { return (bytes + 3) / 4; }

// A block and all the memory that its run needs, no more than promised.
class Workplace {
 public:
  Workplace(const Target& target, const Block& block, Map in, int most_threads)
      : target_(target),
        block_(block),
        in_(in),
        prepared_(floats(block.prepared_bytes(in))),
        shared_(floats(block.shared_bytes(in))) {
    for (int i = 0; i < most_threads; ++i) own_.emplace_back(floats(block.own_bytes(in)));
    block.prepare(in, prepared_.data());
    prepared_.check("prepared data");
  }

  void poison_scratch() {
    shared_.poison();
    for (Guarded& own : own_) own.poison();
  }
  void fill_scratch_with_garbage(std::uint32_t seed) {
    shared_.fill_with_garbage(seed);
    for (Guarded& own : own_) own.fill_with_garbage(++seed);
  }

  // Two runs, one after the other, by one team, as two blocks of a network follow each other. Returns whether
  // a value went beyond what the format holds: of what scratch held before none does.
  bool run_twice(const MapView& x, Guarded& first, Guarded& second, int threads) {
    Barrier barrier;
    std::atomic<bool> overflowed{false};
    const auto member = [&](int rank) {
      target_.forget_overflow();
      barrier.set_size(threads);
      const Team team{rank, threads, &barrier};
      const Scratch scratch{shared_.data(), own_[static_cast<std::size_t>(rank)].data()};
      block_.run(x, first.data(), in_, prepared_.data(), scratch, team);
      team.sync();
      block_.run(x, second.data(), in_, prepared_.data(), scratch, team);
      if (target_.has_overflowed()) overflowed = true;
    };
    std::vector<std::thread> others;
    for (int rank = 1; rank < threads; ++rank) others.emplace_back(member, rank);
    member(0);
    for (std::thread& other : others) other.join();
    return overflowed;
  }

  void check_memory(const std::string& what) const {
    prepared_.check(what + ": prepared data");
    shared_.check(what + ": shared scratch");
    for (const Guarded& own : own_) own.check(what + ": a thread's scratch");
  }
  std::vector<float> prepared() const { return {prepared_.data(), prepared_.data() + prepared_.floats()}; }

 private:
  const Target& target_;
  const Block& block_;
  Map in_;
  Guarded prepared_, shared_;
  std::vector<Guarded> own_;
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

std::vector<float> content(const Guarded& memory) { return {memory.data(), memory.data() + memory.floats()}; }

void check_target(const Target& target, const Sample& sample, Map in, const std::vector<float>& x,
                  const Exact& expected, double bound) {
  const std::string what = sample.name + " on " + std::to_string(in.height) + "x" + std::to_string(in.width) +
                           ", " + target.isa + " " + target.format;
  const std::unique_ptr<Block> block = sample.build(target);
  Map out{};
  char error[256] = "";
  if (!block->output(in, &out, error)) return fail(__FILE__, __LINE__, what + ": refused: " + error);
  const Map& size = expected.size;
  CHECK_THAT(out.height == size.height && out.width == size.width && out.channels == size.channels,
             what + ": wrong size of output");
  CHECK_THAT(block->multiply_adds(in) > 0, what + ": no multiply-adds");
  std::int64_t parameters = 0;
  for (const auto& [name, weight] : sample.tensors)
    parameters += static_cast<std::int64_t>(weight.values.size());
  CHECK_THAT(block->packed_bytes() >= target.value_bytes * parameters,
             what + ": fewer bytes than parameters");

  Workplace place(target, *block, in, 5);
  const std::vector<float> prepared = place.prepared();
  const Strided input = dense_map(target, x, in);
  const std::vector<float> input_before = content(input.memory);
  std::vector<float> first_result;
  for (const int threads : kTeams) {
    const std::string run = what + ", " + std::to_string(threads) + " threads";
    Guarded y = room_for(target, out.values()), again = room_for(target, out.values());
    if (threads == 1) {
      place.poison_scratch();
    } else {
      place.fill_scratch_with_garbage(static_cast<std::uint32_t>(threads));
    }
    CHECK_THAT(!place.run_twice(input.view, y, again, threads), run + ": said to overflow");
    place.check_memory(run);
    y.check(run + ": output");
    again.check(run + ": output");
    // In halves what is not written is NaN, and far from everything.
    const std::int64_t unwritten = in_halves(target) ? 0 : y.unwritten();
    CHECK_THAT(unwritten == 0, run + ": " + std::to_string(unwritten) + " outputs were not written");
    CHECK_THAT(y.same_bits(again), run + ": a second run gives other bits");
    if (threads == 1) {
      check_close(loaded(target, y, out.values()).data(), expected, bound, run);
      first_result = content(y);
    } else {
      CHECK_THAT(same_bits(content(y), first_result), run + ": other bits than one thread gives");
    }
  }
  if (block->takes_strides()) {
    for (const Strided& map : strided_maps(target, x, in)) {
      Guarded y = room_for(target, out.values()), again = room_for(target, out.values());
      place.run_twice(map.view, y, again, 2);
      CHECK_THAT(same_bits(content(y), first_result), what + ": other bits for a strided input");
    }
  }
  CHECK_THAT(same_bits(place.prepared(), prepared), what + ": prepared data were written to");
  CHECK_THAT(same_bits(content(input.memory), input_before), what + ": the input was written to");
}

}  // namespace

Guarded stored(const Target& target, const std::vector<float>& values) {
  Guarded memory = room_for(target, static_cast<std::int64_t>(values.size()));
  for (std::size_t i = 0; i < values.size(); ++i)
    put(target, memory, static_cast<std::int64_t>(i), values[i]);
  return memory;
}

std::vector<float> loaded(const Target& target, const Guarded& memory, std::int64_t count) {
  if (!in_halves(target)) return {memory.data(), memory.data() + count};
  std::vector<float> values;
  for (std::int64_t i = 0; i < count; ++i) {
    std::uint16_t half;
    std::memcpy(&half, reinterpret_cast<const char*>(memory.data()) + 2 * i, 2);
    values.push_back(of_half(target, half));
  }
  return values;
}

std::vector<float> rounded(const Target& target, const std::vector<float>& values) {
  return loaded(target, stored(target, values), static_cast<std::int64_t>(values.size()));
}

// Roundings average out over many values; where there are few, one sum that all but cancels is much of the
// norm.
static double few_values(std::int64_t count) { return 1 + 3 / std::sqrt(static_cast<double>(count)); }

void check_close(const float* actual, const Exact& expected, double of_many, const std::string& what) {
  const double bound = of_many * few_values(expected.size.values());
  double square = 0, total = 0, worst = -1;
  std::int64_t at = 0;
  for (std::int64_t i = 0; i < expected.size.values(); ++i) {
    const double value = expected.values[static_cast<std::size_t>(i)],
                 difference = std::fabs(actual[i] - value);
    square += difference * difference;
    total += value * value;
    if (difference > worst || (std::isnan(difference) && !std::isnan(worst))) {  // NaN is worst of all
      worst = difference;
      at = i;
    }
  }
  const bool near = bound == 0 ? square == 0 : std::sqrt(square) <= bound * std::sqrt(total);
  if (near) return;
  const int channels = expected.size.channels, width = expected.size.width;
  const std::string where = "(" + std::to_string(at / channels / width) + ", " +
                            std::to_string(at / channels % width) + ", " + std::to_string(at % channels) +
                            ")";
  fail(__FILE__, __LINE__,
       what + ": relative L2 " + number(std::sqrt(square / total)) + " > " + number(bound) + "; worst at " +
           where + ": " + number(actual[at]) + " where the reference has " +
           number(expected.values[static_cast<std::size_t>(at)]));
}

Strided dense_map(const Target& target, const std::vector<float>& x, Map size) {
  return strided(target, x, size, std::int64_t{size.width} * size.channels, size.channels, 1);
}

std::vector<Strided> strided_maps(const Target& target, const std::vector<float>& x, Map size) {
  const std::int64_t height = size.height, width = size.width, channels = size.channels;
  const auto with = [&](std::int64_t row, std::int64_t pixel, std::int64_t channel, std::int64_t offset = 0) {
    return strided(target, x, size, row, pixel, channel, offset);
  };
  std::vector<Strided> maps;
  maps.push_back(with(width, 1, height * width));
  maps.push_back(with(1, height, height * width));
  maps.push_back(with((width + 5) * channels, channels, 1, (width + 7) * channels));
  maps.push_back(with(width + 3, 1, (height + 2) * (width + 3), width + 5));
  maps.push_back(with(4 * width * channels, 2 * channels, 2, 1));
  return maps;
}

// In few channels the roundings of few weights do not average out either, least of all where attention has
// one channel of values.
static double half_block_bound(const Sample& sample, Map size) {
  const auto option = [&](const char* name) {
    const auto found = sample.options.find(name);
    return found == sample.options.end() ? 0 : found->second;
  };
  if (option("heads") == 1 && option("value_dim") == 1) return 2 * kHalfBlockBound;
  return kHalfBlockBound * (size.channels < 16 ? 1.2 : 1);
}

void check_block(const Sample& sample, Map in, const std::vector<float>& x, double bound) {
  const auto expected_of = [&](const std::vector<float>& values) {
    Exact exact(in);
    exact.values.assign(values.begin(), values.end());
    return sample.reference(exact);
  };
  const Exact expected = expected_of(x);
  for (const Target* target : available_targets()) {
    if (is_fp16(*target) && bound == 0) continue;  // these integers are beyond what it holds
    if (in_halves(*target)) {
      const std::vector<float> kept = rounded(*target, x);
      double allowed = half_block_bound(sample, expected.size);
      // What is computed in halves rounds 2^13 times as much as floats do.
      if (is_fp16(*target) && bound > kBlockBound) allowed += (bound - kBlockBound) * (1 << 13);
      check_target(*target, sample, in, kept, expected_of(kept), allowed);
    } else {
      check_target(*target, sample, in, x, expected, bound);
    }
  }
}

void check_block(const Sample& sample, int height, int width, Random& random, double bound) {
  const Map in{height, width, sample.in_channels};
  check_block(sample, in, random.normal(in.values()), bound);
}

}  // namespace effv2::tests
