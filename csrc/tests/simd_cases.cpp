// Every operation of a target's vectors against its definition, lane by lane. Compiled once per target.
#include "simd_cases.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>

#include "cpu/tiles/activation.h"
#include "cpu/tiles/scratch.h"

namespace effv2::EFFV2_TARGET {
namespace {

using tests::Mismatch;

constexpr int kMost = 64;  // lanes of any vector
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
float of_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
// The operand that a float is rounded to.
float rounded(double value) { return static_cast<float>(static_cast<Operand>(value)); }
constexpr bool kHalves = sizeof(Operand) == 2;
bool same(float a, float b) { return (std::isnan(a) && std::isnan(b)) || bits_of(a) == bits_of(b); }

// Numbers of every kind: any bits, usual sizes, small integers, and the special ones.
class Values {
 public:
  explicit Values(std::uint64_t seed) : engine_(seed) {}
  float any() { return rounded(any_float()); }
  float any_float() {
    static const float special[] = {0.0f,  -0.0f,  1.0f,    -1.0f,  kInf,    -kInf,   kNaN,
                                    -kNaN, 1e-45f, -1e-45f, 1e-38f, 3.4e38f, -3.4e38f};
    switch (engine_() % 4) {
      case 0: {
        if (!kHalves) return quiet(of_bits(static_cast<std::uint32_t>(engine_())));
        const std::uint16_t bits = static_cast<std::uint16_t>(engine_());
        Operand half;
        std::memcpy(&half, &bits, sizeof bits);
        return quiet(static_cast<float>(half));
      }
      case 1:
        return special[engine_() % (sizeof special / sizeof *special)];
      case 2:
        return static_cast<float>(static_cast<int>(engine_() % 65) - 32);
      default:
        return finite();
    }
  }
  // A signalling NaN, which no arithmetic makes, is treated otherwise by some instructions.
  static float quiet(float value) { return std::isnan(value) ? kNaN : value; }
  float finite() {
    return rounded(std::ldexp(static_cast<float>(static_cast<std::int32_t>(engine_())), -28));
  }
  void fill(Operand* lanes) {
    for (int i = 0; i < kLanes; ++i) lanes[i] = static_cast<Operand>(any());
  }
  void fill_finite(Operand* lanes) {
    for (int i = 0; i < kLanes; ++i) lanes[i] = static_cast<Operand>(finite());
  }

 private:
  std::mt19937_64 engine_;
};

struct Lanes {
  alignas(64) Operand of[kMost];
  Vec vector() const { return load(of); }
};

class Cases {
 public:
  Cases(std::uint64_t seed, const Mismatch& mismatch) : values_(seed), mismatch_(mismatch) {}

  void run() {
    for (int round = 0; round < 2000; ++round) {
      for (Lanes* x : {&a_, &b_, &c_}) values_.fill(x->of);
      arithmetic();
      powers();
      horizontal();
      tables();
#ifdef EFFV2_BY_LANE
      lanes(std::make_integer_sequence<int, kLanes>{});
#endif
    }
    memory();
#ifdef EFFV2_BY_LANE
    together();
#endif
    formats();
    activations();
  }

 private:
  // Each lane of `found` is definition(a, b, c) of that lane.
  template <class Definition>
  void check(const char* what, Vec found, Definition definition) {
    Lanes lanes;
    store(lanes.of, found);
    for (int i = 0; i < kLanes; ++i) {
      const float a = a_.of[i], b = b_.of[i], c = c_.of[i], expected = rounded(definition(a, b, c));
      if (!same(lanes.of[i], expected)) report(what, lanes.of[i], expected, a, b, c);
    }
  }
  // Each lane of `found` is that of `expected`.
  void check_vector(const char* what, Vec found, const Operand* expected) {
    Lanes lanes;
    store(lanes.of, found);
    for (int i = 0; i < kLanes; ++i) {
      const float value = lanes.of[i], right = expected[i];
      if (!same(value, right)) report(what, value, right, 0, 0, 0);
    }
  }
  void report(const char* what, float found, float expected, float a, float b, float c) {
    mismatch_(std::string(what) + "(" + std::to_string(a) + ", " + std::to_string(b) + ", " +
              std::to_string(c) + ") is " + std::to_string(found) + ", not " + std::to_string(expected));
  }

  void arithmetic() {
    const Vec a = a_.vector(), b = b_.vector(), c = c_.vector();
    check("zero", zero(), [](float, float, float) { return 0.0f; });
    check("set1", set1(a_.of[0]), [&](float, float, float) { return a_.of[0]; });
    check("broadcast", broadcast(b_.of + 1), [&](float, float, float) { return b_.of[1]; });
    check("load", a, [](float x, float, float) { return x; });
    Vec kept = b;
    keep(kept);
    check("keep", kept, [](float, float y, float) { return y; });
    check("add", add(a, b), [](float x, float y, float) { return x + y; });
    check("sub", sub(a, b), [](float x, float y, float) { return x - y; });
    check("mul", mul(a, b), [](float x, float y, float) { return x * y; });
    check("div", div(a, b), [](float x, float y, float) { return x / y; });
    check("fma", fma(a, b, c), fused);
    check("fnma", fnma(a, b, c), [](float x, float y, float z) { return fused(-x, y, z); });
    // The sign of a zero is open, and does not matter.
    check("max", add(max(number(a, b), b), zero()),
          [](float x, float y, float) { return (std::isnan(x) || !(x > y) ? y : x) + 0.0f; });
    check("min", add(min(number(a, b), b), zero()),
          [](float x, float y, float) { return (std::isnan(x) || !(x < y) ? y : x) + 0.0f; });
    check("abs", add(abs(a), zero()), [](float x, float, float) { return std::fabs(x) + 0.0f; });
    check("zero_below", narrowed(zero_below(widened(a), widened(b), widened(c))),
          [](float x, float y, float limit) { return y < limit ? 0.0f : x; });
  }

  // a, or b where that is NaN: what comes of a NaN on the left alone is open.
  static Vec number(Vec a, Vec b) {
    Lanes x, y;
    store(x.of, a);
    store(y.of, b);
    for (int i = 0; i < kLanes; ++i) {
      if (std::isnan(x.of[i])) x.of[i] = y.of[i];
    }
    return x.vector();
  }

  // With the instruction a multiply-add rounds once; without, twice.
  static double fused(float x, float y, float z) {
    if (kHalves) return std::fma(static_cast<double>(x), static_cast<double>(y), static_cast<double>(z));
    return std::strncmp(EFFV2_TEXT(EFFV2_TARGET), "scalar", 6) == 0 ? x * y + z : std::fma(x, y, z);
  }

  void powers() {
    Lanes p, n;
    for (int i = 0; i < kLanes; ++i) {
      p.of[i] = static_cast<Operand>(1.0f + 0.4f * std::fabs(values_.finite()) / 8.0f);
      n.of[i] = static_cast<Operand>(
          static_cast<int>(values_.finite() * (kHalves ? 1.5f : 15.0f)));  // -120 ... 120
    }
    Lanes found;
    store(found.of,
          narrowed(scale_by_power(widened(p.vector()), add(widened(n.vector()), wide(12582912.0f)))));
    for (int i = 0; i < kLanes; ++i) {
      const float expected = std::ldexp(p.of[i], static_cast<int>(n.of[i]));
      if (!same(found.of[i], expected)) report("scale_by_power", found.of[i], expected, p.of[i], n.of[i], 0);
    }
  }

  // The upper half is added to the lower one until one value is left.
  void horizontal() {
    Lanes x;
    values_.fill_finite(x.of);
    float lane[kMost], highest = x.of[0];
    for (int i = 0; i < kLanes; ++i) {
      lane[i] = x.of[i];
      if (lane[i] > highest) highest = lane[i];
    }
    const float found_sum = reduce_add(x.vector()), found_max = reduce_max(x.vector());
    for (int half = kLanes / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    }
    if (!same(found_sum, lane[0])) report("reduce_add", found_sum, lane[0], 0, 0, 0);
    if (!same(found_max, highest)) report("reduce_max", found_max, highest, 0, 0, 0);
  }

  void tables() {
#ifdef EFFV2_TABLE_LOOKUP
    alignas(64) float table[32];
    for (float& entry : table) entry = values_.any();
    Lanes index, limit;
    for (int i = 0; i < kLanes; ++i) {
      index.of[i] = values_.any();
      limit.of[i] = std::fabs(values_.finite());
    }
    Lanes found;
    store(found.of, lookup(load_table(table), index.vector()));
    for (int i = 0; i < kLanes; ++i) {
      const float expected = table[bits_of(index.of[i]) & 31u];
      if (!same(found.of[i], expected)) report("lookup", found.of[i], expected, index.of[i], 0, 0);
    }
    store(found.of, min_abs(a_.vector(), limit.vector()));
    for (int i = 0; i < kLanes; ++i) {
      const float x = std::fabs(a_.of[i]), expected = x < limit.of[i] ? x : limit.of[i];
      if (!same(found.of[i], expected)) report("min_abs", found.of[i], expected, a_.of[i], limit.of[i], 0);
    }
#endif
  }

  // Loads and stores of the first lanes read zeros for the others, and leave what lies behind alone.
  void memory() {
    for (int count = 1; count <= kLanes; ++count) {
      values_.fill(a_.of);
      Lanes found;
      store(found.of, load_n(a_.of, count));
      for (int i = 0; i < kLanes; ++i) {
        const float expected = i < count ? static_cast<float>(a_.of[i]) : 0.0f;
        if (!same(found.of[i], expected)) report("load_n", found.of[i], expected, a_.of[i], 0, 0);
      }
      Operand room[kMost + 2];
      for (Operand& value : room) value = static_cast<Operand>(7.5f);
      store_n(room + 1, a_.vector(), count);
      for (int i = -1; i <= kLanes; ++i) {
        const float expected = i >= 0 && i < count ? static_cast<float>(a_.of[i]) : 7.5f;
        if (!same(room[i + 1], expected)) report("store_n", room[i + 1], expected, 0, 0, 0);
      }
    }
    alignas(64) char line[64] = {};
    prefetch(line);
  }

#ifdef EFFV2_BY_LANE
  template <int... Lane>
  void lanes(std::integer_sequence<int, Lane...>) {
    (check("fma_lane", fma_lane<Lane>(a_.vector(), b_.vector(), c_.vector()),
           [&](float, float y, float z) { return fused(a_.of[Lane], y, z); }),
     ...);
  }
  // Several vectors by one instruction, from any address; of two, the address steps on.
  void together() {
    Operand values[4 * kMost + 1];
    for (int at : {0, 1}) {
      const Operand* p = values + at;
      for (int v = 0; v < 4; ++v) values_.fill(values + at + v * kLanes);
      Vec vectors[4];
      load_four(p, vectors);
      for (int v = 0; v < 4; ++v) check_vector("load_four", vectors[v], p + v * kLanes);
      const Operand* next = p;
      for (int v = 0; v < 4; v += 2) {
        load_two(next, vectors[v], vectors[v + 1]);
        if (next != p + (v + 2) * kLanes) {
          report("load_two steps on", static_cast<float>(next - p), static_cast<float>((v + 2) * kLanes), 0,
                 0, 0);
        }
      }
      for (int v = 0; v < 4; ++v) check_vector("load_two", vectors[v], p + v * kLanes);
    }
  }
#endif

  // What is stored is the nearest value of the format, in whole vectors and in parts of one, and comes back
  // as it is; and packed columns lie where a product looks for them.
  void formats() {
    Lanes found;
    values_.fill(a_.of);
    Stored all[kMost];
    store(all, a_.vector());
    store(found.of, load(all));
    for (int i = 0; i < kLanes; ++i) {
      const float expected = static_cast<float>(static_cast<Stored>(a_.of[i]));
      if (!same(found.of[i], expected)) report("store and load", found.of[i], expected, a_.of[i], 0, 0);
    }
    for (int count = 1; count <= kLanes; ++count) {
      Stored some[kMost + 2];
      for (Stored& value : some) value = static_cast<Stored>(7.5f);
      store_n(some + 1, a_.vector(), count);
      store(found.of, load_n(some + 1, count));
      for (int i = -1; i <= kLanes; ++i) {
        const bool inside = i >= 0 && i < count;
        const float expected = inside ? static_cast<float>(all[i]) : 7.5f,
                    stored = static_cast<float>(some[i + 1]);
        if (!same(stored, expected)) report("store_n as stored", stored, expected, 0, 0, 0);
        if (i < 0 || i == kLanes) continue;
        const float read = inside ? expected : 0.0f;
        if (!same(found.of[i], read)) report("load_n of stored", found.of[i], read, 0, 0, 0);
      }
    }
    columns();
  }
  void columns() {
    Stored packed[kWidePanel];
    for (int c = 0; c < kWidePanel; ++c)
      packed[packed_column(c)] = static_cast<Stored>(static_cast<float>(c));
    Vec wide[kTileVectors + 1], narrow[kTileVectors], one[1];
    load_columns(packed, wide);
    load_columns(packed, narrow);
    load_columns(packed, one);
    Operand numbers[kWidePanel];
    for (int c = 0; c < kWidePanel; ++c) numbers[c] = static_cast<Operand>(c);
    const auto check_columns = [&](const Vec* vectors, int count) {
      for (int v = 0; v < count; ++v) check_vector("load_columns", vectors[v], numbers + v * kLanes);
    };
    check_columns(wide, kTileVectors + 1);
    check_columns(narrow, kTileVectors);
    check_columns(one, 1);
  }

  // Against double precision, over the range that matters and at its ends.
  void activations() {
    for (const Activation a :
         {Activation::silu, Activation::hardswish, Activation::relu, Activation::relu6}) {
      for (int round = 0; round < 200; ++round) {
        Lanes x;
        for (Operand& value : x.of) value = static_cast<Operand>(4 * values_.finite());
        if (round == 0) {
          int i = 0;
          for (const float special : {kInf, -kInf, kNaN, -90.0f}) x.of[i++] = static_cast<Operand>(special);
        }
        alignas(64) Operand y[kMost];
        std::memcpy(y, x.of, sizeof y);
        const Clamp clamp = clamp_of(a);
        if (clamp.any) apply(y, kLanes + 1, clamp);
        activate(a, y, kLanes + 1);
        for (int i = 0; i < kLanes + 1; ++i) {
          const double expected = exact(a, x.of[i]);
          // The exponent of SiLU is rounded, which counts as much as it is large.
          const double size = std::fabs(static_cast<float>(x.of[i]));
          const double allowed = kHalves ? (2e-3 + 1e-3 * size) * std::fabs(expected) + 1e-6
                                         : (5e-7 + 1.2e-7 * size) * std::fabs(expected) + 1e-9;
          const double found = static_cast<float>(y[i]);
          const bool near = std::isnan(expected)
                                ? std::isnan(found)
                                : found == expected || std::fabs(found - expected) <= allowed;
          if (!near)
            report(kActivationNames[static_cast<int>(a)], y[i], static_cast<float>(expected), x.of[i], 0, 0);
        }
      }
    }
  }
  static double exact(Activation a, double x) {
    if (a == Activation::silu) return x / (1 + std::exp(-x));
    if (a == Activation::hardswish) return x * (x + 3 > 6 ? 6 : x + 3 < 0 ? 0 : x + 3) / 6;
    if (a == Activation::relu6 && x > 6) return 6;
    return x < 0 ? 0 : x;
  }

  Values values_;
  const Mismatch& mismatch_;
  Lanes a_, b_, c_;
};

}  // namespace

void check_simd(std::uint64_t seed, const Mismatch& mismatch) { Cases(seed, mismatch).run(); }

}  // namespace effv2::EFFV2_TARGET
