#include "engine/network.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "engine/network_run.h"
#include "engine/pace.h"
#include "engine/threads.h"

namespace effv2 {

// Resolutions remembered at once: each may hold a gathered attention bias per block.
constexpr std::size_t kPlans = 8;
// Idle contexts kept: as many as there are calls at the same time in a busy server, within reason.
constexpr std::size_t kContexts = 16;
// Fewer weights than this gain nothing from large pages: the processor keeps the places of all small ones.
constexpr std::int64_t kArenaBytes = std::int64_t{32} << 20;

// Of the calling thread, as a member of this team.
static Effort effort_so_far(const Team& team) {
  const std::chrono::duration<double> now = std::chrono::steady_clock::now().time_since_epoch();
  return {now.count(), counted_multiply_adds, team.barrier ? team.barrier->meetings() : 0};
}

Network::Network(const Target* target, std::int64_t weight_bytes)
    : target_(target), arena_(weight_bytes < kArenaBytes ? nullptr : std::make_unique<Arena>()) {}
Network::~Network() = default;

void Network::Sides::narrow(std::int64_t grid, std::int64_t pixels) {
  least = std::max(least, (grid - 1) * pixels + 1);
  most = std::min(most ? most : kLongestSide, grid * pixels);
}

void Network::add(std::unique_ptr<Block> block, int in_channels, const Scale& scale) {
  if (blocks_.empty()) in_channels_ = in_channels;
  Map out;
  char ignored[256];
  block->output({1, 1, in_channels}, &out, ignored);
  out_channels_ = out.channels;
  if (scale.rows) {
    rows_.narrow(scale.rows, step_ * scale.pixels);
    cols_.narrow(scale.cols, step_ * scale.pixels);
  }
  // Beyond the longest side every image is one pixel.
  step_ = std::min(step_ * scale.step, 2 * kLongestSide);
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
    feature.scale = Array<float>(channels);
    feature.shift = Array<float>(channels);
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

std::int64_t Network::working_bytes() const {
  const std::lock_guard<std::mutex> lock(fork_safe_mutex());
  std::int64_t bytes = 0;
  for (const auto& plan : plans_) bytes += plan->prepared.bytes();
  for (const auto& context : contexts_) {
    for (const Buffer& arena : context->arenas) bytes += arena.bytes();
  }
  return bytes;
}

// So that counts of pixels fit an int, and bytes of any memory a std::int64_t.
static void check_size(Map map) {
  constexpr std::int64_t kMostPixels = 1 << 28, kMostValues = std::int64_t{1} << 40;
  const auto fits = [](int n) { return n >= 1 && n <= kLongestSide; };
  if (fits(map.height) && fits(map.width) && map.pixels() <= kMostPixels && map.values() <= kMostValues)
    return;
  throw ResolutionError("a map of " + std::to_string(map.height) + "x" + std::to_string(map.width) +
                        " with " + std::to_string(map.channels) + " channels is none that can be computed");
}

void Network::refuse(int height, int width) const {
  if (rows_.least > rows_.most || cols_.least > cols_.most)
    throw ResolutionError(
        "the attention biases of this network are made for images of different sizes: none fits all of them");
  const auto range = [](const Sides& sides) {
    return std::to_string(sides.least) + "-" + std::to_string(sides.most);
  };
  throw ResolutionError("the attention biases of this network fit images of " + range(rows_) + " rows by " +
                        range(cols_) + " columns, but this one is " + std::to_string(height) + "x" +
                        std::to_string(width));
}

std::vector<Map> Network::maps(int height, int width) const {
  std::vector<Map> maps;
  Map map{height, width, in_channels_};
  check_size(map);
  char ignored[256];  // of one block; what the image has to be follows from all of them
  for (const auto& block : blocks_) {
    Map next;
    if (!block->output(map, &next, ignored)) refuse(height, width);
    check_size(next);
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
  plan->map_bytes = aligned_bytes(bytes_of(map));  // a strided input of a single block is made dense there
  if (!blocks_.empty() && blocks_.front()->takes_strides()) plan->map_bytes = 0;
  std::int64_t prepared = 0;
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    plan->inputs.push_back(map);
    plan->prepared_at.push_back(prepared);
    prepared += aligned_bytes(blocks_[i]->prepared_bytes(map));
    plan->shared_bytes = std::max(plan->shared_bytes, aligned_bytes(blocks_[i]->shared_bytes(map)));
    plan->own_bytes = std::max(plan->own_bytes, aligned_bytes(blocks_[i]->own_bytes(map)));
    map = plan->outputs[i];
    plan->map_bytes = std::max(plan->map_bytes, aligned_bytes(bytes_of(map)));
  }
  plan->prepared = Buffer(prepared);
  for (plan->late = blocks_.size(); plan->late > 0; --plan->late) {
    // A block reads one map and writes another.
    const std::int64_t bytes = aligned_bytes(bytes_of(plan->outputs[plan->late - 1]));
    if (blocks_[plan->late - 1]->packed_bytes() < 2 * bytes) break;
    plan->late_map_bytes = std::max(plan->late_map_bytes, bytes);
  }
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    blocks_[i]->prepare(plan->inputs[i], plan->prepared.data() + plan->prepared_at[i]);
  }
  const std::lock_guard<std::mutex> lock(fork_safe_mutex());
  if (plans_.size() == kPlans) plans_.erase(plans_.begin());
  plans_.push_back(plan);
  return plan;
}

std::unique_ptr<Network::Context> Network::take_context(int height, int width, int threads, int group) const {
  {
    const std::lock_guard<std::mutex> lock(fork_safe_mutex());
    for (auto& idle : contexts_) {
      if (idle->plan->height == height && idle->plan->width == width &&
          static_cast<int>(idle->arenas.size()) >= threads && idle->group >= group) {
        std::unique_ptr<Context> found = std::move(idle);
        contexts_.erase(contexts_.begin() + (&idle - contexts_.data()));
        return found;
      }
    }
  }
  auto context = std::make_unique<Context>();
  context->plan = plan(height, width);
  context->group = group;
  for (int i = 0; i < threads; ++i) context->arenas.emplace_back(context->plan->arena_bytes(group));
  context->barriers = std::vector<Barrier>(static_cast<std::size_t>(threads));
  context->hands = std::vector<Hand>(static_cast<std::size_t>(threads));
  return context;
}

void Network::run(const Images& images, void* const* outputs, int threads, double* seconds, int stop) const {
  threads = std::max(1, std::min(threads, usable_cpus()));
  const int group = Dealing::group(images.count, threads);
  target_->forget_overflow();
  std::unique_ptr<Context> context = take_context(images.height, images.width, threads, group);
  const bool prepared_overflowed = target_->has_overflowed();
  for (Hand& hand : context->hands) hand.reset();
  std::vector<Effort> efforts(seconds ? blocks_.size() * static_cast<std::size_t>(threads) : 0);
  Run run{images,
          outputs,
          *context->plan,
          *context,
          group,
          seconds ? efforts.data() : nullptr,
          stop ? static_cast<std::size_t>(stop) : blocks_.size(),
          !stop && !features_.empty(),
          {},
          {prepared_overflowed}};

  struct Call {
    const Network* network;
    Run* run;
  } call{this, &run};
  run_on_threads(
      threads,
      [](void* argument, int rank, int size) {
        const Call& c = *static_cast<Call*>(argument);
        const Target& target = *c.network->target_;
        target.forget_overflow();
        c.network->work(*c.run, rank, size);
        if (target.has_overflowed()) c.run->overflowed.store(true, std::memory_order_relaxed);
      },
      &call);

  if (seconds) {
    for (std::size_t block = 0; block < blocks_.size(); ++block) {
      seconds[block] = 0;
      for (int t = 0; t < threads; ++t) {
        const Effort& effort = efforts[static_cast<std::size_t>(t) * blocks_.size() + block];
        seconds[block] = std::max(seconds[block], effort.seconds);
      }
    }
  }
  {
    const std::lock_guard<std::mutex> lock(fork_safe_mutex());
    if (contexts_.size() == kContexts) contexts_.erase(contexts_.begin());
    contexts_.push_back(std::move(context));
  }
  if (run.overflowed.load(std::memory_order_relaxed)) {
    throw OverflowError("a value went beyond " + shown(target_->largest) + ", the largest of " +
                        target_->format + ", while these images ran: run them in fp32");
  }
}

void Network::work(Run& run, int rank, int size) const {
  Effort* efforts = run.efforts ? run.efforts + static_cast<std::size_t>(rank) * blocks_.size() : nullptr;
  const Plan& plan = run.plan;
  std::byte* arena = run.context.arenas[static_cast<std::size_t>(rank)].data();

  const Dealing dealing(run.images.count, size);
  for (int image; (image = run.next.fetch_add(run.group, std::memory_order_relaxed)) < dealing.alone;) {
    const int end = std::min(image + run.group, dealing.alone);
    run_group(run, {image, end}, arena, plan.own(arena), efforts);
  }
  if (dealing.left == 0) return;
  const int team = dealing.team_of(rank);
  const int first = dealing.members(team).begin;
  Barrier& barrier = run.context.barriers[static_cast<std::size_t>(team)];
  Team me{rank - first, dealing.helpers(team), &barrier, nullptr, pretended_pace()};
  if (me.size > 1) me.hands = run.context.hands.data() + first;
  if (me.rank >= me.size) return;
  barrier.set_size(me.size);
  std::byte* leader = run.context.arenas[static_cast<std::size_t>(first)].data();
  // The leader's arena becomes common property: it must have finished its own images.
  if (dealing.alone) me.sync();
  run_together(run, dealing.alone + team, leader, plan.own(arena), me, efforts);
}

// An image by a team, on its leader's arena.
void Network::run_together(const Run& run, int image, std::byte* leader, std::byte* own, const Team& team,
                           Effort* efforts) const {
  const Scratch scratch{leader + 2 * run.plan.map_bytes, own};
  Walk walk = enter(run, image, leader, team);
  for (std::size_t i = 0; i < run.blocks; ++i) step(run, i, walk, scratch, team, efforts);
}

// One image after the other through the early blocks, whose maps are large; then block after block, so that
// weights that fit into no near cache are read once for the whole group.
void Network::run_group(const Run& run, Range images, std::byte* arena, std::byte* own,
                        Effort* efforts) const {
  const Plan& plan = run.plan;
  const Scratch scratch{arena + 2 * plan.map_bytes, own};
  std::byte* late_maps = own + plan.own_bytes;
  const bool grouped = images.end - images.begin > 1;
  const std::size_t late = grouped ? std::min(plan.late, run.blocks) : run.blocks;
  Walk walks[kMostInGroup];
  for (int image = images.begin; image < images.end; ++image, late_maps += 2 * plan.late_map_bytes) {
    Walk& walk = walks[image - images.begin];
    walk = enter(run, image, arena, {});
    for (std::size_t i = 0; i <= late && i < run.blocks; ++i) {
      if (i == late) {
        // From here on the image needs maps of its own.
        walk.maps[0] = late_maps;
        walk.maps[1] = late_maps + plan.late_map_bytes;
      }
      step(run, i, walk, scratch, {}, efforts);
    }
  }
  for (std::size_t i = late + 1; i < run.blocks; ++i) {
    step_group(run, i, walks, images.end - images.begin, scratch, efforts);
  }
}

// An image at the network's door; made dense where the first block needs that.
Network::Walk Network::enter(const Run& run, int image, std::byte* arena, const Team& team) const {
  const Images& images = run.images;
  Walk walk{image,
            {static_cast<const std::byte*>(images.data) + image * images.image_stride * target_->value_bytes,
             images.channel_stride, images.row_stride, images.pixel_stride},
            {arena, arena + run.plan.map_bytes}};
  const MapView& x = walk.x;
  const Map input = run.plan.inputs.front();
  const MapView as_dense = dense(x.data, input);
  const bool is_dense =
      x.channel_stride == 1 && x.pixel_stride == as_dense.pixel_stride && x.row_stride == as_dense.row_stride;
  if (is_dense || blocks_.front()->takes_strides()) return walk;
  std::byte* copy = walk.maps[walk.spare];
  const Range rows = team.share(input.height);
  target_->copy_rows(x, input, rows.begin, rows.end, copy);
  team.sync();
  walk.x = dense(copy, input);
  walk.spare ^= 1;
  return walk;
}

// An image through block i.
void Network::step(const Run& run, std::size_t i, Walk& walk, const Scratch& scratch, const Team& team,
                   Effort* efforts) const {
  const Plan& plan = run.plan;
  const Effort start = efforts ? effort_so_far(team) : Effort{};
  const Place to = place(run, i, walk);
  blocks_[i]->run(walk.x, to.y, plan.inputs[i], plan.prepared.data() + plan.prepared_at[i], scratch, team);
  team.sync();
  leave(run, i, to, walk, team);
  if (efforts) efforts[i] += effort_so_far(team) - start;
}

// The images of a group through block i. Their maps, like what is returned of them, lie at equal distances.
void Network::step_group(const Run& run, std::size_t i, Walk* walks, int images, const Scratch& scratch,
                         Effort* efforts) const {
  const Plan& plan = run.plan;
  const Effort start = efforts ? effort_so_far({}) : Effort{};
  Place to[kMostInGroup]{};
  for (int g = 0; g < images; ++g) to[g] = place(run, i, walks[g]);
  const auto* x = static_cast<const std::byte*>(walks[0].x.data);
  const std::int64_t x_step = images > 1 ? static_cast<const std::byte*>(walks[1].x.data) - x : 0;
  const std::int64_t y_step = images > 1 ? to[1].y - to[0].y : 0;
  blocks_[i]->run_group({images, x, x_step, to[0].y, y_step}, plan.inputs[i],
                        plan.prepared.data() + plan.prepared_at[i], scratch);
  for (int g = 0; g < images; ++g) leave(run, i, to[g], walks[g], {});
  if (efforts) efforts[i] += effort_so_far({}) - start;
}

Network::Place Network::place(const Run& run, std::size_t i, Walk& walk) const {
  const auto output = [&](std::size_t feature) {
    return static_cast<std::byte*>(run.outputs[feature]) + walk.image * bytes_of(run.plan.outputs[i]);
  };
  Place to{walk.maps[walk.spare], nullptr, nullptr};
  if (run.features && walk.feature < features_.size() &&
      features_[walk.feature].block == static_cast<int>(i)) {
    to.wanted = &features_[walk.feature];
    to.returned = output(walk.feature++);
  } else if (!run.features && i + 1 == run.blocks) {
    to.returned = output(0);
  }
  if (to.returned && !(to.wanted && to.wanted->scale.data())) to.y = to.returned;
  return to;
}

// What block i has made is returned if it is wanted, and is what the next one reads.
void Network::leave(const Run& run, std::size_t i, const Place& place, Walk& walk, const Team& team) const {
  const Map out = run.plan.outputs[i];
  if (place.returned && !place.direct()) {
    const Range pixels = team.share(static_cast<int>(out.pixels()));
    const std::int64_t first = pixels.begin * std::int64_t{out.channels} * target_->value_bytes;
    target_->scale_and_shift(place.y + first, place.wanted->scale.data(), place.wanted->shift.data(),
                             pixels.end - pixels.begin, out.channels, place.returned + first);
  }
  walk.x = dense(place.y, out);
  // A map that was returned directly leaves both buffers free.
  if (!place.direct()) walk.spare ^= 1;
}

}  // namespace effv2
