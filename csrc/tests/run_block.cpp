#include "run_block.h"

#include <cmath>
#include <cstdio>
#include <thread>

namespace effv2::tests {
namespace {

constexpr int kTeams[] = {1, 2, 3, 5};

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

// A map with the given distances between rows, pixels and channels, and an offset of its first element.
Strided strided(const std::vector<float>& x, Map size, std::int64_t row, std::int64_t pixel,
                std::int64_t channel, std::int64_t offset = 0) {
  const std::int64_t extent =
      offset + (size.height - 1) * row + (size.width - 1) * pixel + (size.channels - 1) * channel + 1;
  Strided map{Guarded(extent), {}};
  map.view = {map.memory.data() + offset, channel, row, pixel};
  const float* from = x.data();
  for (int y = 0; y < size.height; ++y) {
    for (int column = 0; column < size.width; ++column) {
      for (int c = 0; c < size.channels; ++c) {
        map.memory.data()[offset + y * row + column * pixel + c * channel] = *from++;
      }
    }
  }
  return map;
}

// A block and all the memory that its run needs, no more than promised.
class Workplace {
 public:
  Workplace(const Block& block, Map in, int most_threads)
      : block_(block), in_(in), prepared_(block.prepared_floats(in)), shared_(block.shared_floats(in)) {
    for (int i = 0; i < most_threads; ++i) own_.emplace_back(block.own_floats(in));
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

  // Two runs, one after the other, by one team, as two blocks of a network follow each other.
  void run_twice(const MapView& x, Guarded& first, Guarded& second, int threads) {
    Barrier barrier;
    const auto member = [&](int rank) {
      barrier.set_size(threads);
      const Team team{rank, threads, &barrier};
      const Scratch scratch{shared_.data(), own_[static_cast<std::size_t>(rank)].data()};
      block_.run(x, first.data(), in_, prepared_.data(), scratch, team);
      team.sync();
      block_.run(x, second.data(), in_, prepared_.data(), scratch, team);
    };
    std::vector<std::thread> others;
    for (int rank = 1; rank < threads; ++rank) others.emplace_back(member, rank);
    member(0);
    for (std::thread& other : others) other.join();
  }

  void check_memory(const std::string& what) const {
    prepared_.check(what + ": prepared data");
    shared_.check(what + ": shared scratch");
    for (const Guarded& own : own_) own.check(what + ": a thread's scratch");
  }
  std::vector<float> prepared() const { return {prepared_.data(), prepared_.data() + prepared_.floats()}; }

 private:
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

void check_isa(const Isa& isa, const Sample& sample, Map in, const std::vector<float>& x,
               const Exact& expected, double bound) {
  const std::string what =
      sample.name + " on " + std::to_string(in.height) + "x" + std::to_string(in.width) + ", " + isa.name;
  const std::unique_ptr<Block> block = sample.build(isa);
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
  CHECK_THAT(block->packed_bytes() >= 4 * parameters, what + ": fewer bytes than parameters");

  Workplace place(*block, in, 5);
  const std::vector<float> prepared = place.prepared();
  const Strided input = dense_map(x, in);
  const std::vector<float> input_before = content(input.memory);
  std::vector<float> first_result;
  for (const int threads : kTeams) {
    const std::string run = what + ", " + std::to_string(threads) + " threads";
    Guarded y(out.floats()), again(out.floats());
    if (threads == 1) {
      place.poison_scratch();
    } else {
      place.fill_scratch_with_garbage(static_cast<std::uint32_t>(threads));
    }
    place.run_twice(input.view, y, again, threads);
    place.check_memory(run);
    y.check(run + ": output");
    again.check(run + ": output");
    CHECK_THAT(y.unwritten() == 0, run + ": " + std::to_string(y.unwritten()) + " outputs were not written");
    CHECK_THAT(y.same_bits(again), run + ": a second run gives other bits");
    if (threads == 1) {
      check_close(y.data(), expected, bound, run);
      first_result = content(y);
    } else {
      CHECK_THAT(same_bits(content(y), first_result), run + ": other bits than one thread gives");
    }
  }
  if (block->takes_strides()) {
    for (const Strided& map : strided_maps(x, in)) {
      Guarded y(out.floats()), again(out.floats());
      place.run_twice(map.view, y, again, 2);
      CHECK_THAT(same_bits(content(y), first_result), what + ": other bits for a strided input");
    }
  }
  CHECK_THAT(same_bits(place.prepared(), prepared), what + ": prepared data were written to");
  CHECK_THAT(same_bits(content(input.memory), input_before), what + ": the input was written to");
}

}  // namespace

void check_close(const float* actual, const Exact& expected, double bound, const std::string& what) {
  double square = 0, total = 0, worst = -1;
  std::int64_t at = 0;
  for (std::int64_t i = 0; i < expected.size.floats(); ++i) {
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

Strided dense_map(const std::vector<float>& x, Map size) {
  return strided(x, size, std::int64_t{size.width} * size.channels, size.channels, 1);
}

std::vector<Strided> strided_maps(const std::vector<float>& x, Map size) {
  const std::int64_t height = size.height, width = size.width, channels = size.channels;
  std::vector<Strided> maps;
  maps.push_back(strided(x, size, width, 1, height * width));
  maps.push_back(strided(x, size, 1, height, height * width));
  maps.push_back(strided(x, size, (width + 5) * channels, channels, 1, (width + 7) * channels));
  maps.push_back(strided(x, size, width + 3, 1, (height + 2) * (width + 3), width + 5));
  maps.push_back(strided(x, size, 4 * width * channels, 2 * channels, 2, 1));
  return maps;
}

void check_block(const Sample& sample, Map in, const std::vector<float>& x, double bound) {
  Exact exact(in);
  exact.values.assign(x.begin(), x.end());
  const Exact expected = sample.reference(exact);
  for (const Isa* isa : available_isas()) check_isa(*isa, sample, in, x, expected, bound);
}

void check_block(const Sample& sample, int height, int width, Random& random, double bound) {
  const Map in{height, width, sample.in_channels};
  check_block(sample, in, random.normal(in.floats()), bound);
}

}  // namespace effv2::tests
