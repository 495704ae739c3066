#include "engine/network.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "engine/threads.h"

namespace effv2 {

// Resolutions remembered at once: each may hold a gathered attention bias per block.
constexpr std::size_t kPlans = 8;
// Idle contexts kept: as many as there are calls at the same time in a busy server, within reason.
constexpr std::size_t kContexts = 16;

// What depends on the size of the images alone.
struct Network::Plan {
  int height, width;
  std::vector<Map> inputs, outputs;  // of every block
  std::vector<std::int64_t> prepared_at;
  Buffer prepared;
  std::int64_t map_floats = 0;  // the largest map between two blocks
  std::int64_t shared_floats = 0, own_floats = 0;

  std::int64_t arena_floats() const { return 2 * map_floats + shared_floats + own_floats; }
};

// The memory of one call: an arena per thread.
struct Network::Context {
  std::shared_ptr<const Plan> plan;
  std::vector<Buffer> arenas;
  std::vector<Barrier> barriers;
};

struct Network::Run {
  const Images& images;
  float* const* outputs;
  const Plan& plan;
  Context& context;
  double* seconds;  // [thread][block], or null
  std::atomic<int> next{0};
};

Network::Network(const Isa* isa) : isa_(isa) {}
Network::~Network() = default;

void Network::add(std::unique_ptr<Block> block, int in_channels) {
  if (blocks_.empty()) in_channels_ = in_channels;
  Map out;
  char ignored[256];
  block->output({1, 1, in_channels}, &out, ignored);
  out_channels_ = out.channels;
  blocks_.push_back(std::move(block));
}

void Network::add_feature(const float* scale, const float* shift, int channels) {
  Feature feature;
  feature.block = static_cast<int>(blocks_.size()) - 1;
  if (feature.block < 0) throw Error("a feature needs a block before it");
  if (!features_.empty() && features_.back().block == feature.block) {
    throw Error("the output of block " + std::to_string(feature.block) + " is returned already");
  }
  if (scale) {
    feature.scale = Buffer(channels);
    feature.shift = Buffer(channels);
    std::memcpy(feature.scale.data(), scale, static_cast<std::size_t>(channels) * sizeof(float));
    std::memcpy(feature.shift.data(), shift, static_cast<std::size_t>(channels) * sizeof(float));
  }
  features_.push_back(std::move(feature));
}

std::int64_t Network::packed_bytes() const {
  std::int64_t bytes = 0;
  for (const auto& block : blocks_) bytes += block->packed_bytes();
  return bytes;
}

std::vector<Map> Network::maps(int height, int width) const {
  std::vector<Map> maps;
  Map map{height, width, in_channels_};
  char error[256] = "";
  for (const auto& block : blocks_) {
    Map next;
    if (!block->output(map, &next, error)) throw Error(error);
    maps.push_back(map = next);
  }
  return maps;
}

std::vector<std::int64_t> Network::multiply_adds(int height, int width) const {
  std::vector<std::int64_t> counts;
  Map map{height, width, in_channels_};
  const std::vector<Map> outputs = maps(height, width);
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    counts.push_back(blocks_[i]->multiply_adds(map));
    map = outputs[i];
  }
  return counts;
}

std::shared_ptr<const Network::Plan> Network::plan(int height, int width) const {
  {
    const std::lock_guard<std::mutex> lock(fork_safe_mutex());
    for (const auto& plan : plans_) {
      if (plan->height == height && plan->width == width) return plan;
    }
  }
  auto plan = std::make_shared<Plan>();
  plan->height = height;
  plan->width = width;
  plan->outputs = maps(height, width);
  Map map{height, width, in_channels_};
  plan->map_floats = aligned_floats(map.floats());  // a strided input of a single block is made dense there
  if (!blocks_.empty() && blocks_.front()->takes_strides()) plan->map_floats = 0;
  std::int64_t prepared = 0;
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    plan->inputs.push_back(map);
    plan->prepared_at.push_back(prepared);
    prepared += aligned_floats(blocks_[i]->prepared_floats(map));
    plan->shared_floats = std::max(plan->shared_floats, aligned_floats(blocks_[i]->shared_floats(map)));
    plan->own_floats = std::max(plan->own_floats, aligned_floats(blocks_[i]->own_floats(map)));
    map = plan->outputs[i];
    plan->map_floats = std::max(plan->map_floats, aligned_floats(map.floats()));
  }
  plan->prepared = Buffer(prepared);
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    blocks_[i]->prepare(plan->inputs[i], plan->prepared.data() + plan->prepared_at[i]);
  }
  const std::lock_guard<std::mutex> lock(fork_safe_mutex());
  if (plans_.size() == kPlans) plans_.erase(plans_.begin());
  plans_.push_back(plan);
  return plan;
}

std::unique_ptr<Network::Context> Network::take_context(int height, int width, int threads) const {
  {
    const std::lock_guard<std::mutex> lock(fork_safe_mutex());
    for (auto& idle : contexts_) {
      if (idle->plan->height == height && idle->plan->width == width &&
          static_cast<int>(idle->arenas.size()) >= threads) {
        std::unique_ptr<Context> found = std::move(idle);
        contexts_.erase(contexts_.begin() + (&idle - contexts_.data()));
        return found;
      }
    }
  }
  auto context = std::make_unique<Context>();
  context->plan = plan(height, width);
  for (int i = 0; i < threads; ++i) context->arenas.emplace_back(context->plan->arena_floats());
  context->barriers = std::vector<Barrier>(static_cast<std::size_t>(threads));
  return context;
}

void Network::run(const Images& images, float* const* outputs, int threads, double* seconds) const {
  threads = std::max(1, std::min(threads, usable_cpus()));
  std::unique_ptr<Context> context = take_context(images.height, images.width, threads);
  std::vector<double> times(seconds ? blocks_.size() * static_cast<std::size_t>(threads) : 0);
  Run run{images, outputs, *context->plan, *context, seconds ? times.data() : nullptr, {}};

  struct Call {
    const Network* network;
    Run* run;
  } call{this, &run};
  run_on_threads(
      threads,
      [](void* argument, int rank, int size) {
        const Call& c = *static_cast<Call*>(argument);
        c.network->work(*c.run, rank, size);
      },
      &call);

  if (seconds) {
    for (std::size_t block = 0; block < blocks_.size(); ++block) {
      seconds[block] = 0;
      for (int t = 0; t < threads; ++t) {
        seconds[block] =
            std::max(seconds[block], times[static_cast<std::size_t>(t) * blocks_.size() + block]);
      }
    }
  }
  const std::lock_guard<std::mutex> lock(fork_safe_mutex());
  if (contexts_.size() == kContexts) contexts_.erase(contexts_.begin());
  contexts_.push_back(std::move(context));
}

// As many images as can be dealt out evenly go to single threads, which take them one by one; what is
// left is shared by teams.
void Network::work(Run& run, int rank, int size) const {
  const int count = run.images.count;
  double* seconds = run.seconds ? run.seconds + static_cast<std::size_t>(rank) * blocks_.size() : nullptr;
  const Plan& plan = run.plan;
  const auto own = [&](float* arena) { return arena + 2 * plan.map_floats + plan.shared_floats; };
  float* arena = run.context.arenas[static_cast<std::size_t>(rank)].data();

  const int alone = size == 1 ? count : count / size * size;
  for (int image; (image = run.next.fetch_add(1, std::memory_order_relaxed)) < alone;) {
    run_image(run, image, {}, arena, own(arena), seconds);
  }
  const int left = count - alone;
  if (left == 0) return;
  int team = 0;
  Range members{0, size};
  while (members = split(size, team, left), rank >= members.end) ++team;
  Barrier& barrier = run.context.barriers[static_cast<std::size_t>(team)];
  barrier.set_size(members.end - members.begin);
  float* leader = run.context.arenas[static_cast<std::size_t>(members.begin)].data();
  const Team me{rank - members.begin, members.end - members.begin, &barrier};
  // The leader's arena becomes common property: it must have finished its own images.
  me.sync();
  run_image(run, alone + team, me, leader, own(arena), seconds);
}

void Network::run_image(const Run& run, int image, const Team& team, float* team_arena, float* own,
                        double* seconds) const {
  const Plan& plan = run.plan;
  const Images& images = run.images;
  float* maps[2] = {team_arena, team_arena + plan.map_floats};
  const Scratch scratch{team_arena + 2 * plan.map_floats, own};
  MapView x{images.data + image * images.image_stride, images.channel_stride, images.row_stride,
            images.pixel_stride};
  int spare = 0;

  const Map input = plan.inputs.front();
  const MapView as_dense = dense(x.data, input);
  const bool is_dense =
      x.channel_stride == 1 && x.pixel_stride == as_dense.pixel_stride && x.row_stride == as_dense.row_stride;
  if (!is_dense && !blocks_.front()->takes_strides()) {
    float* copy = maps[spare];
    const Range rows = team.share(input.height);
    for (int row = rows.begin; row < rows.end; ++row) {
      for (int column = 0; column < input.width; ++column) {
        const float* pixel = x.data + row * x.row_stride + column * x.pixel_stride;
        float* to = copy + (std::int64_t{row} * input.width + column) * input.channels;
        for (int c = 0; c < input.channels; ++c) to[c] = pixel[c * x.channel_stride];
      }
    }
    team.sync();
    x = dense(copy, input);
    spare ^= 1;
  }

  std::size_t feature = 0;
  auto start = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    const Map out = plan.outputs[i];
    float* y = maps[spare];
    const Feature* wanted = feature < features_.size() && features_[feature].block == static_cast<int>(i)
                                ? &features_[feature]
                                : nullptr;
    float* returned = nullptr;
    if (wanted) returned = run.outputs[feature++] + image * out.floats();
    if (features_.empty() && i + 1 == blocks_.size()) returned = run.outputs[0] + image * out.floats();
    const bool direct = returned && !(wanted && wanted->scale.data());
    if (direct) y = returned;
    blocks_[i]->run(x, y, plan.inputs[i], plan.prepared.data() + plan.prepared_at[i], scratch, team);
    team.sync();
    if (returned && !direct) {
      const Range pixels = team.share(static_cast<int>(out.pixels()));
      for (std::int64_t p = pixels.begin; p < pixels.end; ++p) {
        for (int c = 0; c < out.channels; ++c) {
          const std::int64_t at = p * out.channels + c;
          returned[at] = y[at] * wanted->scale.data()[c] + wanted->shift.data()[c];
        }
      }
    }
    x = dense(y, out);
    // A map that was returned directly leaves both buffers free.
    if (!direct) spare ^= 1;
    if (seconds) {
      const auto now = std::chrono::steady_clock::now();
      seconds[i] += std::chrono::duration<double>(now - start).count();
      start = now;
    }
  }
}

}  // namespace effv2
