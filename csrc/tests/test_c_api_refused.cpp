// The C ABI: a status and a reason for everything that can be wrong.
#include <algorithm>
#include <cstdlib>
#include <functional>
#include <limits>
#include <map>
#include <utility>

#include "abi.h"
#include "cpu/dispatch.h"

namespace effv2::tests {

// The file is sound: it is the dtype that does not hold it.
TEST(c_api_refused, weights_beyond_the_dtype) {
  Random random;
  bool tried = false;
  for (const Target* target : available_targets()) {
    if (target->largest == std::numeric_limits<float>::max()) continue;
    NetworkSample sample = sample_with_head();
    sample.blocks[1].tensors.at("fc1_weight").values[3] = std::numeric_limits<float>::max();
    const std::string bytes = Saved(sample).bytes();
    effv2_options options{};
    options.size = sizeof options;
    options.dtype = target->format;
    options.isa = target->isa;
    effv2_network* network = nullptr;
    const auto load = [&](effv2_status status) {
      return reason(status, effv2_load_memory(bytes.data(), bytes.size(), &options, &network));
    };
    const std::string why = load(EFFV2_OVERFLOW);
    const std::string expected =
        "the data cannot run in " + std::string(target->format) +
        ": block 1: ffn: fc1_weight holds the value 3.40282e+38, and the largest of " + target->format;
    CHECK_THAT(why.rfind(expected, 0) == 0 && mentions(why, "; use fp32"), why);
    CHECK(!network);
    options.dtype = "fp32";
    load(EFFV2_OK);
    effv2_free(network);
    tried = true;
  }
  if (!tried) note("skipped: every dtype here holds what fp32 holds");
}

TEST(c_api_refused, wrong_calls) {
  const Loaded loaded(Saved(sample_with_head()).bytes());
  std::vector<float> x(static_cast<std::size_t>(kSize.values())), output(10);
  void* outputs[] = {output.data()};
  const effv2_images right{x.data(), 1, 3, kHeight, kWidth, 0, 0, 0, 0};
  const auto run = [&](const effv2_images* images, void* const* to, int count, int threads,
                       effv2_status expected = EFFV2_INVALID_ARGUMENT) {
    return reason(expected, effv2_run(loaded.network, images, to, count, threads));
  };
  CHECK(mentions(run(nullptr, outputs, 1, 0), "NULL"));
  CHECK(mentions(run(&right, nullptr, 1, 0), "no memory"));
  void* const nowhere[] = {nullptr};
  CHECK(mentions(run(&right, nowhere, 1, 0), "no memory"));
  for (const int count : {0, 2, -1}) CHECK(mentions(run(&right, outputs, count, 0), "expected 1 outputs"));
  CHECK(mentions(run(&right, outputs, 1, -1), "threads is -1"));
  effv2_images wrong = right;
  wrong.data = nullptr;
  CHECK(mentions(run(&wrong, outputs, 1, 0), "no memory"));
  wrong = right;
  wrong.channels = 4;
  CHECK(mentions(run(&wrong, outputs, 1, 0), "expected 3 channels, got 4"));
  for (const std::int64_t n :
       {std::int64_t{0}, std::int64_t{-1}, std::int64_t{1} << 25, INT64_MAX, INT64_MIN}) {
    for (std::int64_t effv2_images::* size :
         {&effv2_images::count, &effv2_images::height, &effv2_images::width}) {
      wrong = right;
      wrong.*size = n;
      run(&wrong, outputs, 1, 0);
    }
  }
  wrong = right;
  wrong.height = kHeight + 32;
  const std::string misfit = run(&wrong, outputs, 1, 0, EFFV2_INVALID_SIZE);
  CHECK_THAT(misfit ==
                 "the attention biases of this network fit images of 33-48 rows by 49-64 columns, but this "
                 "one is 72x56",
             misfit);
  effv2_shape shape;
  CHECK(effv2_output_shape(loaded.network, 0, 9, 9, &shape) == EFFV2_INVALID_SIZE);
  CHECK(effv2_output_shape(loaded.network, 1, kHeight, kWidth, &shape) == EFFV2_INVALID_ARGUMENT);
  CHECK(effv2_output_shape(loaded.network, -1, kHeight, kWidth, &shape) == EFFV2_INVALID_ARGUMENT);
  CHECK(effv2_output_shape(loaded.network, 0, 0, kWidth, &shape) == EFFV2_INVALID_ARGUMENT);
  CHECK(effv2_output_shape(loaded.network, 0, kHeight, kWidth, nullptr) == EFFV2_INVALID_ARGUMENT);
  CHECK(effv2_output_shape(nullptr, 0, kHeight, kWidth, &shape) == EFFV2_INVALID_ARGUMENT);
  CHECK(effv2_run(nullptr, &right, outputs, 1, 0) == EFFV2_INVALID_ARGUMENT);
  CHECK(effv2_profile(loaded.network, &right, outputs, 1, 0, nullptr, 11) == EFFV2_INVALID_ARGUMENT);
  CHECK(effv2_working_bytes(nullptr) == 0);
  effv2_free(nullptr);
}

TEST(c_api_refused, wrong_loads) {
  const std::string bytes = Saved(sample_with_head()).bytes();
  effv2_network* network = nullptr;
  effv2_options options{};
  options.size = sizeof options;
  const auto load = [&](effv2_status expected) {
    network = reinterpret_cast<effv2_network*>(&options);
    const std::string why =
        reason(expected, effv2_load_memory(bytes.data(), bytes.size(), &options, &network));
    CHECK_THAT(!network, "a network was left behind");
    return why;
  };
  options.dtype = "fp8";
  CHECK(mentions(load(EFFV2_INVALID_ARGUMENT), "unknown dtype 'fp8'"));
  options.isa = targets().back().isa;  // the plainest that was built: builds for sanitizers leave some out
  options.dtype = "fp16";
  CHECK(mentions(load(EFFV2_UNAVAILABLE), "fp16"));
  options.dtype = nullptr;
  options.isa = "avx1024";
  CHECK(mentions(load(EFFV2_INVALID_ARGUMENT), "unknown ISA 'avx1024'; known: avx512, avx2, neon, scalar"));
#if defined(__x86_64__)
  options.isa = "neon";
  CHECK(mentions(load(EFFV2_UNAVAILABLE), "'neon' is an ISA of 64-bit Arm, and this processor"));
#else
  options.isa = "avx2";
  CHECK(mentions(load(EFFV2_UNAVAILABLE), "'avx2' is an ISA of x86-64, and this processor"));
#endif
  options.isa = nullptr;
  options.threads = -2;
  CHECK(mentions(load(EFFV2_INVALID_ARGUMENT), "threads is -2"));
  options.threads = 3;
  for (const std::size_t size : {std::size_t{0}, std::size_t{4}, sizeof options + 1}) {
    options.size = size;
    CHECK(mentions(load(EFFV2_INVALID_ARGUMENT), "sizeof(effv2_options)"));
  }
  // An earlier version of the struct may be shorter.
  options.size = sizeof(std::size_t);
  CHECK(effv2_load_memory(bytes.data(), bytes.size(), &options, &network) == EFFV2_OK);
  CHECK(describe(network).threads == effv2_default_threads());
  effv2_description shorter{};
  shorter.size = offsetof(effv2_description, channels);
  CHECK(effv2_describe(network, &shorter) == EFFV2_OK && shorter.value_bytes == 4 && shorter.channels == 0);
  shorter.size = 1000;
  CHECK(effv2_describe(network, &shorter) == EFFV2_INVALID_ARGUMENT);
  effv2_free(network);

  options.size = sizeof options;
  CHECK(effv2_load_memory(bytes.data(), 100, &options, &network) == EFFV2_INVALID_NETWORK);
  CHECK(effv2_load_memory(nullptr, 100, &options, &network) == EFFV2_INVALID_ARGUMENT);
  CHECK(effv2_load_memory(bytes.data(), bytes.size(), &options, nullptr) == EFFV2_INVALID_ARGUMENT);
  CHECK(effv2_load_file(nullptr, &options, &network) == EFFV2_INVALID_ARGUMENT);
  CHECK(mentions(reason(EFFV2_FILE_ERROR, effv2_load_file("/no/such/file", nullptr, &network)),
                 "/no/such/file"));
  CHECK(
      mentions(reason(EFFV2_INVALID_ARGUMENT, effv2_load_file("", nullptr, &network)), "the path is empty"));
  Saved newer(sample_with_head());
  newer.header["__metadata__"]["version"] = "3";
  const std::string of_later = newer.bytes();
  CHECK(mentions(
      reason(EFFV2_UNKNOWN_VERSION, effv2_load_memory(of_later.data(), of_later.size(), nullptr, &network)),
      "version '3'"));
}

// Whatever a file or a caller says, the reason is one line, and says what it is about.
TEST(c_api_refused, reasons_are_one_line) {
  using Json = nlohmann::json;
  const std::string odd = "a\nb\r\x1b[2J\x7f\xc2\x85\xc2\x9b" + std::string(5000, 'x');
  const std::string seen = "a?b??[2J???x";
  const auto refused_as = [](effv2_status status, const std::string& bytes) {
    effv2_network* network = nullptr;
    return reason(status, effv2_load_memory(bytes.data(), bytes.size(), nullptr, &network));
  };
  const auto refused = [&](const std::string& bytes) { return refused_as(EFFV2_INVALID_NETWORK, bytes); };
  const auto check = [&](const std::string& why, const std::string& about) {
    const auto control = [](unsigned char c) { return c < ' ' || c == 0x7f; };
    CHECK_THAT(std::none_of(why.begin(), why.end(), control), why);
    CHECK_THAT(why.size() < 400 && mentions(why, about), why);
  };
  const std::map<std::string, std::function<void(Json&)>> changes{
      {"unknown kind of block '" + seen, [&](Json& s) { s["blocks"][0]["kind"] = odd; }},
      {"has no field '" + seen, [&](Json& s) { s["blocks"][1]["options"][odd] = 1; }},
      {"unknown activation '" + seen, [&](Json& s) { s["blocks"][1]["options"]["activation"] = odd; }},
      {"blocks.0.a?b??[2J", [&](Json& s) { s["blocks"][0]["tensors"].push_back(odd); }},
  };
  for (const auto& [about, change] : changes) {
    Saved saved(sample_with_head());
    Json structure = saved.structure();
    change(structure);
    saved.set_structure(structure);
    check(refused(saved.bytes()), about);
  }
  for (const char* key : {"version", "dtype"}) {
    Saved saved(sample_with_head());
    saved.header["__metadata__"]["version"] = "2";
    saved.header["__metadata__"][key] = odd;
    check(refused_as(key == std::string("version") ? EFFV2_UNKNOWN_VERSION : EFFV2_INVALID_NETWORK,
                     saved.bytes()),
          "has " + std::string(key) + " '" + seen);
  }
  Saved saved(sample_with_head());
  saved.header["__metadata__"]["structure"] = "{\"" + std::string(5000, 'x') + "\x7f\" 1}";
  check(refused(saved.bytes()), "does not describe a network that can be run");
  effv2_network* network = nullptr;
  check(reason(EFFV2_FILE_ERROR, effv2_load_file("no\nsuch\x1b\xc2\x85 file", nullptr, &network)),
        "there is no file no such    file");
  // A long one ends with a whole character.
  std::string path = "/";
  for (int i = 0; i < 1000; ++i) path += "\xc3\xa9";
  const std::string why = reason(EFFV2_FILE_ERROR, effv2_load_file(path.c_str(), nullptr, &network));
  CHECK_THAT(why.size() > 1000 && why.substr(why.size() - 2) == "\xc3\xa9", why);
}

TEST(c_api_refused, forced_isa) {
  const char* before = std::getenv("EFFV2_FORCE_ISA");
  const std::string kept = before ? before : "";
  const std::string bytes = Saved(sample_with_head()).bytes();
#if defined(__x86_64__)
  const char* const foreign = "neon";
#else
  const char* const foreign = "avx2";
#endif
  // The statuses are those of options.isa.
  for (const auto& [name, status] :
       {std::pair("avx1024", EFFV2_INVALID_ARGUMENT), {foreign, EFFV2_UNAVAILABLE}}) {
    setenv("EFFV2_FORCE_ISA", name, 1);
    effv2_network* network = nullptr;
    const std::string why = reason(status, effv2_load_memory(bytes.data(), bytes.size(), nullptr, &network));
    CHECK_THAT(mentions(why, "EFFV2_FORCE_ISA") && mentions(why, "'" + std::string(name) + "'"), why);
  }
  if (before) {
    setenv("EFFV2_FORCE_ISA", kept.c_str(), 1);
  } else {
    unsetenv("EFFV2_FORCE_ISA");
  }
}

}  // namespace effv2::tests
