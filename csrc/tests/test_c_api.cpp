// The C ABI: what it computes and tells of a network, in every format, and for several callers at once.
#include <cstring>
#include <thread>

#include "abi.h"
#include "cpu/dispatch.h"
#include "engine/threads.h"
#include "run_block.h"

namespace effv2::tests {

TEST(c_api, describes_and_runs) {
  Random random;
  const NetworkSample sample = sample_with_head();
  const std::string bytes = Saved(sample).bytes();
  for (const Target* target : fp32_targets()) {
    const Loaded loaded(bytes, "fp32", target->isa);
    const effv2_description about = describe(loaded.network);
    CHECK(std::string(about.dtype) == "fp32" && std::string(about.isa) == target->isa);
    CHECK(std::string(about.file_dtype) == "fp32" && about.value_bytes == 4);
    CHECK(about.channels == 3 && about.outputs == 1 && about.has_head == 1 && about.blocks == 11);
    CHECK(about.threads == effv2_default_threads());
    CHECK(about.packed_bytes > 0 && effv2_working_bytes(loaded.network) == 0);
    effv2_shape shape{};
    CHECK(effv2_output_shape(loaded.network, 0, kHeight, kWidth, &shape) == EFFV2_OK);
    CHECK(shape.channels == 10 && shape.height == 1 && shape.width == 1);

    const std::vector<float> values = random.normal(3 * kSize.values());
    Outputs expected;
    for (const Strides& strides : {nchw(kSize), nhwc(kSize)}) {
      const Batch batch = batch_of(values, 3, kSize, strides);
      expected = run_network(sample, *sample.build(*target), batch.images, 1, "built");
      const effv2_images images = images_of(batch.images);
      Guarded output(30);
      void* outputs[] = {output.data()};
      for (const int threads : {0, 1, 2, 1000}) {
        output.poison();
        CHECK(effv2_run(loaded.network, &images, outputs, 1, threads) == EFFV2_OK);
        output.check("output");
        CHECK(same_bits({{output.data(), output.data() + 30}}, expected));
      }
    }
    CHECK(effv2_working_bytes(loaded.network) > 0);
    // Without strides images are dense.
    const Batch batch = batch_of(values, 3, kSize, nchw(kSize));
    const effv2_images dense{batch.images.data, 3, 3, kHeight, kWidth, 0, 0, 0, 0};
    std::vector<float> output(30);
    void* outputs[] = {output.data()};
    CHECK(effv2_run(loaded.network, &dense, outputs, 1, 1) == EFFV2_OK);
    CHECK(same_bits({output}, expected));
  }
}

TEST(c_api, features) {
  Random random;
  NetworkSample sample = sample_with_head();
  sample.blocks.pop_back();
  sample.features = {{1, {}, {}}, {3, random.normal(24), random.normal(24)}};
  const Loaded loaded(Saved(sample).bytes());
  const effv2_description about = describe(loaded.network);
  CHECK(about.has_head == 0 && about.outputs == 2);
  effv2_shape shapes[2];
  std::vector<std::vector<float>> memory;
  void* outputs[2];
  for (int i = 0; i < 2; ++i) {
    CHECK(effv2_output_shape(loaded.network, i, kHeight, kWidth, &shapes[i]) == EFFV2_OK);
    memory.emplace_back(static_cast<std::size_t>(shapes[i].channels * shapes[i].height * shapes[i].width));
    outputs[i] = memory.back().data();
  }
  CHECK(shapes[0].channels == 16 && shapes[0].height == 10 && shapes[0].width == 14);
  CHECK(shapes[1].channels == 24 && shapes[1].height == 5 && shapes[1].width == 7);
  const Batch batch = batch_of(random.normal(kSize.values()), 1, kSize, nchw(kSize));
  const effv2_images images = images_of(batch.images);
  CHECK(effv2_run(loaded.network, &images, outputs, 2, 1) == EFFV2_OK);
  const Target& target = *fp32_targets().front();
  CHECK(same_bits(memory, run_network(sample, *sample.build(target), batch.images, 1, "built")));
}

TEST(c_api, names_of_classes) {
  Saved saved(sample_with_head());
  const Loaded nameless(saved.bytes());
  CHECK(!effv2_class_name(nameless.network, 0) && !effv2_class_name(nullptr, 0));
  saved.header["__metadata__"]["labels"] = R"(["0","1","2","3","4","5","6","7","8","\u00e9"])";
  const Loaded named(saved.bytes());
  CHECK(std::string(effv2_class_name(named.network, 0)) == "0");
  CHECK(std::string(effv2_class_name(named.network, 9)) == "\xc3\xa9");
  CHECK(!effv2_class_name(named.network, 10) && !effv2_class_name(named.network, -1));
  saved.header["__metadata__"]["labels"] = R"(["one"])";
  effv2_network* none = nullptr;
  const std::string bytes = saved.bytes();
  CHECK(mentions(reason(EFFV2_INVALID_NETWORK, effv2_load_memory(bytes.data(), bytes.size(), nullptr, &none)),
                 "there are 1 for 10 classes"));
}

// Where the processor computes in it, a value beyond it is a status of that call; elsewhere it is refused,
// and what was not asked for by name runs in fp32.
TEST(c_api, fp16) {
  Random random;
  const NetworkSample sample = sample_with_head();
  const std::string bytes = Saved(sample).bytes();
  CHECK(std::string(describe(Loaded(bytes).network).dtype) == "fp32");
  const Target* target = find_target("neon", "fp16");
  if (!target) target = find_target("neon_emulated", "fp16");
  if (!target) return note("skipped: only 64-bit Arm computes in fp16");
  if (!target->available()) {
    effv2_network* network = nullptr;
    effv2_options options{};
    options.size = sizeof options;
    options.dtype = "fp16";
    const std::string why =
        reason(EFFV2_UNAVAILABLE, effv2_load_memory(bytes.data(), bytes.size(), &options, &network));
    CHECK_THAT(
        mentions(why, "cannot run 'neon' in fp16: on a CPU it needs 64-bit Arm with arithmetic in half"),
        why);
    CHECK(!network);
    return;
  }
  const Loaded loaded(bytes, "fp16", target->isa);
  CHECK(std::string(describe(loaded.network).dtype) == "fp16" && describe(loaded.network).value_bytes == 2);
  std::vector<float> values = random.normal(2 * kSize.values());
  const Batch ordinary = stored_batch(*target, values, 2, kSize);
  const Outputs expected = run_network(sample, *sample.build(*target), ordinary.images, 1, "built");
  for (float& value : values) value *= 12000;
  const Batch large = stored_batch(*target, values, 2, kSize);
  const auto run = [&](const Batch& batch, effv2_status status) {
    const Guarded output = room_for(*target, 20);
    void* outputs[] = {output.data()};
    const effv2_images images = images_of(batch.images);
    const std::string why = reason(status, effv2_run(loaded.network, &images, outputs, 1, 2));
    CHECK(same_bits({tests::loaded(*target, output, 20)}, expected) == (status == EFFV2_OK));
    return why;
  };
  run(ordinary, EFFV2_OK);
  CHECK(mentions(run(large, EFFV2_OVERFLOW), "beyond 65504, the largest of fp16"));
  run(ordinary, EFFV2_OK);
}

TEST(c_api, several_callers_at_once) {
  Random random;
  const Loaded loaded(Saved(sample_with_head()).bytes());
  const Batch batch = batch_of(random.normal(2 * kSize.values()), 2, kSize, nchw(kSize));
  const effv2_images images = images_of(batch.images);
  std::vector<float> expected(20);
  void* outputs[] = {expected.data()};
  CHECK(effv2_run(loaded.network, &images, outputs, 1, 1) == EFFV2_OK);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      for (int i = 0; i < 5; ++i) {
        std::vector<float> own(20);
        void* addresses[] = {own.data()};
        CHECK(effv2_run(loaded.network, &images, addresses, 1, 1 + caller % 2) == EFFV2_OK);
        CHECK(own == expected);
        // Reasons belong to their thread.
        CHECK(effv2_run(loaded.network, nullptr, addresses, 1, caller) == EFFV2_INVALID_ARGUMENT);
        CHECK(mentions(effv2_error(), "images"));
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

TEST(c_api, blocks_and_their_times) {
  Random random;
  const NetworkSample sample = sample_with_head();
  const Loaded loaded(Saved(sample).bytes());
  const Batch batch = batch_of(random.normal(kSize.values()), 1, kSize, nchw(kSize));
  const effv2_images images = images_of(batch.images);
  std::vector<double> seconds(11, -1);
  std::vector<float> output(10);
  void* outputs[] = {output.data()};
  CHECK(effv2_profile(loaded.network, &images, outputs, 1, 1, seconds.data(), 11) == EFFV2_OK);
  for (int i = 0; i < 11; ++i) {
    CHECK(seconds[static_cast<std::size_t>(i)] > 0);
    effv2_block block{};
    block.size = sizeof block;
    CHECK(effv2_describe_block(loaded.network, i, kHeight, kWidth, &block) == EFFV2_OK);
    CHECK(sample.blocks[static_cast<std::size_t>(i)].kind == block.kind);
    CHECK(block.name == "part." + std::to_string(i) && block.multiply_adds > 0 && block.output.channels > 0);
  }
  CHECK(mentions(reason(EFFV2_INVALID_ARGUMENT,
                        effv2_profile(loaded.network, &images, outputs, 1, 1, seconds.data(), 10)),
                 "11 blocks"));
  double gflops = 0;
  CHECK(effv2_measure_peak(loaded.network, 1, 2, &gflops) == EFFV2_OK && gflops > 0);
  for (const double time : {0.0, -1.0, 1e9}) {
    CHECK(effv2_measure_peak(loaded.network, 1, time, &gflops) == EFFV2_INVALID_ARGUMENT);
  }
  CHECK(mentions(reason(EFFV2_INVALID_ARGUMENT, effv2_measure_peak(loaded.network, -1, 2, &gflops)),
                 "threads is -1; expected 0 or more"));
  CHECK(mentions(reason(EFFV2_INVALID_ARGUMENT,
                        effv2_profile(loaded.network, &images, outputs, 1, -2, seconds.data(), 11)),
                 "threads is -2; expected 0 or more"));
}

TEST(c_api, version) { CHECK(std::strchr(effv2_version(), '.') != nullptr); }

}  // namespace effv2::tests
