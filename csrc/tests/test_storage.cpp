// Saved networks: what is written is loaded to the same bits, and nothing else is taken.
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>

#include "engine/errors.h"
#include "saved.h"
#include "storage/errors.h"
#include "storage/half.h"
#include "storage/load.h"
#include "storage/mapped_file.h"
#include "use_file.h"

namespace effv2::tests {
namespace {

using Json = nlohmann::json;

LoadedNetwork load(const char* data, std::size_t bytes, const Target& target) {
  return load_network(reinterpret_cast<const std::byte*>(data), bytes, "a.effv2",
                      [&](const std::string&) -> const Target& { return target; });
}

LoadedNetwork load(const std::string& bytes) {
  return load(bytes.data(), bytes.size(), *fp32_targets().front());
}

// Why a file is refused; empty, and a failure, if it is taken.
std::string refusal(const std::string& bytes, const std::string& what) {
  try {
    load(bytes);
  } catch (const FormatError& error) {
    return error.what();
  }
  fail(__FILE__, __LINE__, what + ": was accepted");
  return "";
}

bool mentions(const std::string& message, const std::string& part) {
  return message.find(part) != std::string::npos;
}

NetworkSample with_features(Random& random) {
  NetworkSample sample = small_network(random, 40, 56, true);
  sample.blocks.pop_back();
  sample.features = {{1, {}, {}}, {3, random.normal(24), random.normal(24)}, {9, {}, {}}};
  return sample;
}

std::string text_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

TEST(storage, loads_what_was_saved) {
  Random random;
  const Map size{40, 56, 3};
  for (const NetworkSample& sample : {small_network(random, 40, 56), with_features(random)}) {
    const std::string bytes = Saved(sample).bytes();
    const Batch batch = batch_of(random.normal(2 * size.values()), 2, size, nchw(size));
    for (const Target* target : fp32_targets()) {
      const LoadedNetwork loaded = load(bytes.data(), bytes.size(), *target);
      CHECK(loaded.has_head == sample.features.empty() && loaded.dtype == "fp32");
      CHECK(loaded.blocks.size() == sample.blocks.size() && loaded.blocks[2].kind == "conv");
      CHECK(loaded.blocks[2].name == "part.2");
      CHECK(same_bits(run_network(sample, *loaded.network, batch.images, 1, "loaded"),
                      run_network(sample, *sample.build(*target), batch.images, 1, "built")));
    }
  }
}

// In a file that is mapped, tensors may lie at any address.
TEST(storage, tensors_at_odd_addresses) {
  Random random;
  const NetworkSample sample = small_network(random, 40, 56);
  const Map size{40, 56, 3};
  const Batch batch = batch_of(random.normal(size.values()), 1, size, nchw(size));
  const std::string bytes = Saved(sample).bytes();
  const Target& target = *fp32_targets().front();
  const Outputs expected = run_network(sample, *sample.build(target), batch.images, 1, "built");
  for (std::size_t shift = 1; shift < 4; ++shift) {
    const std::string shifted = std::string(shift, 'x') + bytes;
    const LoadedNetwork loaded = load(shifted.data() + shift, bytes.size(), target);
    CHECK(same_bits(run_network(sample, *loaded.network, batch.images, 1, "loaded"), expected));
  }
}

TEST(storage, halves_are_read_exactly) {
  for (unsigned bits = 0; bits < 1u << 16; ++bits) {
    const int exponent = static_cast<int>(bits >> 10 & 31), fraction = static_cast<int>(bits & 1023);
    const float found = float_of_half(static_cast<std::uint16_t>(bits));
    CHECK(std::signbit(found) == (bits >> 15 == 1));
    if (exponent == 31) {
      CHECK(fraction ? std::isnan(found) : std::isinf(found));
      continue;
    }
    const double magnitude =
        exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
    CHECK(static_cast<double>(std::fabs(found)) == magnitude);
  }
}

TEST(storage, truncated_files) {
  Random random;
  const std::string bytes = Saved(small_network(random, 32, 32)).bytes();
  std::size_t header = 8;
  for (std::size_t i = 0; i < 8; ++i)
    header += static_cast<std::size_t>(static_cast<unsigned char>(bytes[i])) << 8 * i;
  for (std::size_t kept = 0; kept < bytes.size(); kept += kept < header + 16 ? 1 : 997) {
    const std::string why = refusal(bytes.substr(0, kept), std::to_string(kept) + " bytes");
    CHECK_THAT(mentions(why, "a.effv2 is truncated or not a safetensors file"), why);
  }
  CHECK(mentions(refusal(bytes + std::string(1, '\0'), "a byte more"), "truncated or not"));
  // Not where the first of them ends that is not there.
  const std::size_t values = bytes.size() - header;
  const std::string half = refusal(bytes.substr(0, header + values / 2), "half of its values");
  CHECK_THAT(mentions(half, "its tensors end at byte " + std::to_string(values) + " of " +
                                std::to_string(values / 2)),
             half);
}

// Any change of a byte of the header is refused, or gives a network that can be used; nothing breaks.
TEST(storage, changed_bytes) {
  Random random;
  NetworkSample sample;
  sample.blocks = {conv_sample(random, 3, 8, {3, 2}), ffn_sample(random, 8, 12), head_sample(random, 8, 4)};
  const std::string bytes = Saved(sample).bytes();
  const std::size_t header = bytes.find("\"__metadata__\"") + 1200;
  for (std::size_t at = 0; at < std::min(header, bytes.size()); ++at) {
    std::string changed = bytes;
    changed[at] = static_cast<char>(random.bits());
    use_file(reinterpret_cast<const std::uint8_t*>(changed.data()), changed.size());
    changed = bytes.substr(0, at) + bytes.substr(at + 1);
    use_file(reinterpret_cast<const std::uint8_t*>(changed.data()), changed.size());
  }
}

TEST(storage, headers) {
  Random random;
  const Saved saved(small_network(random, 32, 32));
  const std::string key = "blocks.0.conv1_bias";
  const std::map<std::string, std::function<void(Saved&)>> changes{
      {"a tensor without a shape", [&](Saved& s) { s.header[key].erase("shape"); }},
      {"a tensor with more", [&](Saved& s) { s.header[key]["stride"] = 1; }},
      {"a negative size", [&](Saved& s) { s.header[key]["shape"] = {-8}; }},
      {"a size that is no integer", [&](Saved& s) { s.header[key]["shape"] = {8.0}; }},
      {"offsets that overlap", [&](Saved& s) { s.header[key]["data_offsets"] = {0, 64}; }},
      {"one offset", [&](Saved& s) { s.header[key]["data_offsets"] = {0}; }},
      {"offsets in the wrong order", [&](Saved& s) { s.header[key]["data_offsets"] = {64, 0}; }},
      {"an offset beyond 2^63", [&](Saved& s) { s.header[key]["data_offsets"][1] = ~std::uint64_t{0}; }},
      {"metadata that is no string", [](Saved& s) { s.header["__metadata__"]["version"] = 1; }},
      {"bytes behind the tensors", [](Saved& s) { s.values += "more"; }},
  };
  for (const auto& [what, change] : changes) {
    Saved changed = saved;
    change(changed);
    const std::string why = refusal(changed.bytes(), what);
    CHECK_THAT(mentions(why, "is truncated or not a safetensors file"), what + ": " + why);
  }
  // Sizes whose product overflows.
  Saved changed = saved;
  changed.header[key]["shape"] = {std::int64_t{1} << 40, std::int64_t{1} << 40};
  CHECK(mentions(refusal(changed.bytes(), "overflow"), "which its shape does not fit"));
  changed = saved;
  changed.header[key]["dtype"] = "F64";
  CHECK(mentions(refusal(changed.bytes(), "dtype"), "stored as 'F64'; expected F32 or F16"));
}

TEST(storage, structures) {
  Random random;
  const Saved saved(small_network(random, 32, 32));
  const std::map<std::string, std::function<void(Json&)>> changes{
      {"no blocks", [](Json& s) { s["blocks"] = Json::array(); }},
      {"an unknown kind", [](Json& s) { s["blocks"][0]["kind"] = "conv9x9"; }},
      {"an unknown option", [](Json& s) { s["blocks"][1]["options"]["groups"] = 1; }},
      {"an option of another type", [](Json& s) { s["blocks"][1]["options"]["stride"] = "1"; }},
      {"an activation by number", [](Json& s) { s["blocks"][1]["options"]["activation"] = 1; }},
      {"an unknown activation", [](Json& s) { s["blocks"][1]["options"]["activation"] = "tanh"; }},
      {"an option beyond 64 bits", [](Json& s) { s["blocks"][5]["options"]["heads"] = ~std::uint64_t{0}; }},
      {"a tensor twice", [](Json& s) { s["blocks"][0]["tensors"].push_back("conv1_bias"); }},
      {"a head before the last block", [](Json& s) { std::swap(s["blocks"][9], s["blocks"][10]); }},
      {"features beside a head", [](Json& s) { s["features"].push_back({{"block", 1}, {"scaled", false}}); }},
      {"a key that nobody knows", [](Json& s) { s["padding"] = 3; }},
      {"a name that is no string", [](Json& s) { s["blocks"][0]["name"] = 3; }},
      {"no source", [](Json& s) { s.erase("source"); }},
  };
  for (const auto& [what, change] : changes) {
    Saved changed = saved;
    Json structure = saved.structure();
    change(structure);
    changed.set_structure(structure);
    const std::string why = refusal(changed.bytes(), what);
    CHECK_THAT(mentions(why, "does not describe a network that can be run") || mentions(why, "does not hold"),
               what + ": " + why);
  }
}

TEST(storage, versions) {
  Random random;
  Saved saved(small_network(random, 32, 32));
  for (const char* version : {"3", "", "1.0", "two"}) {
    saved.header["__metadata__"]["version"] = version;
    try {
      load(saved.bytes());
      fail(__FILE__, __LINE__, std::string("was accepted: ") + version);
    } catch (const VersionError& error) {
      CHECK_THAT(mentions(error.what(), "of the format, and this library reads versions '1' and '2'"),
                 error.what());
    }
  }
  saved.header["__metadata__"]["version"] = "2";
  CHECK(mentions(refusal(saved.bytes(), "version 2 without dtype"), "expected 'fp16'"));
  saved.header["__metadata__"]["dtype"] = "fp16";
  CHECK(mentions(refusal(saved.bytes(), "version 2 in 32 bits"), "is stored in 32 bits, expected 16"));
  saved.header["__metadata__"]["format"] = "pt";
  CHECK(mentions(refusal(saved.bytes(), "another format"), "was not written by effv2_kernels.save()"));
}

TEST(storage, files_that_cannot_be_read) {
  const auto message = [](const std::string& path) -> std::string {
    try {
      const MappedFile file(path.c_str());
      return "";
    } catch (const FileError& error) {
      return error.what();
    }
  };
  const std::filesystem::path folder = std::filesystem::temp_directory_path();
  CHECK(mentions(message((folder / "effv2 is not here").string()), "there is no file"));
  CHECK(mentions(message(folder.string()), "no regular file"));
  CHECK(mentions(message("/dev/zero"), "no regular file"));
  const std::string pipe = (folder / ("effv2_pipe_" + std::to_string(getpid()))).string();
  CHECK(mkfifo(pipe.c_str(), 0600) == 0);
  CHECK(mentions(message(pipe), "no regular file"));  // and is not waited for
  unlink(pipe.c_str());
}

// What the fuzzer has found is found no more; see fuzz_load.cpp.
TEST(storage, finds_of_the_fuzzer) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(EFFV2_CORPUS)) {
    const std::string bytes = text_of(entry.path());
    const bool taken = use_file(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
    const bool good = entry.path().filename().string().rfind("good_", 0) == 0;
    CHECK_THAT(taken == good, entry.path().filename().string());
    ++files;
  }
  CHECK(files > 0);
}

}  // namespace effv2::tests
