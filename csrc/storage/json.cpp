#include "storage/json.h"

#include <limits>
#include <set>
#include <string>
#include <vector>

#include "storage/errors.h"

namespace effv2 {
namespace {

constexpr int kDeepest = 32;

[[noreturn]] void expected(const char* what, const char* type) {
  throw FormatError(std::string(what) + " must be " + type);
}

// Refuses names that an object has twice: which of the two counts would be up to the reader.
class Names {
 public:
  bool operator()(int depth, Json::parse_event_t event, Json& value) {
    if (depth > kDeepest) throw FormatError("it is nested too deeply");
    if (event == Json::parse_event_t::object_start) open_.emplace_back();
    if (event == Json::parse_event_t::object_end) open_.pop_back();
    if (event == Json::parse_event_t::key && !open_.back().insert(value.get<std::string>()).second) {
      throw FormatError("an object has " + shown(value.get<std::string>()) + " twice");
    }
    return true;
  }

 private:
  std::vector<std::set<std::string>> open_;
};

Json parsed(std::string_view text, char first) {
  // The library would skip a byte order mark and stop at a zero.
  if (text.empty() || text.front() != first)
    throw FormatError(std::string("it does not begin with ") + first);
  if (text.find('\0') != std::string_view::npos) throw FormatError("it has a zero byte");
  Names names;
  try {
    return Json::parse(text.begin(), text.end(), std::ref(names));
  } catch (const Json::exception& error) {
    constexpr std::size_t kLongest = 200;  // it quotes the text
    throw FormatError(shortened(error.what(), kLongest));
  }
}

}  // namespace

Json parsed_object(std::string_view text) { return parsed(text, '{'); }
Json parsed_list(std::string_view text) { return parsed(text, '['); }

const Json& object_with(const Json& value, const char* what, std::initializer_list<const char*> names) {
  if (!value.is_object()) expected(what, "an object");
  for (const char* name : names) {
    if (!value.contains(name)) throw FormatError(std::string(what) + " lacks '" + name + "'");
  }
  if (value.size() != names.size()) throw FormatError(std::string(what) + " has more than it may have");
  return value;
}

const Json::array_t& array(const Json& value, const char* what) {
  if (!value.is_array()) expected(what, "a list");
  return value.get_ref<const Json::array_t&>();
}

const std::string& string(const Json& value, const char* what) {
  if (!value.is_string()) expected(what, "a string");
  return value.get_ref<const std::string&>();
}

std::int64_t integer(const Json& value, const char* what) {
  constexpr auto kMost = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  const bool negative = value.is_number_integer() && !value.is_number_unsigned();
  if (negative && value.get<std::int64_t>() < 0) return value.get<std::int64_t>();
  // -0 is refused: some readers take it for no integer.
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > kMost)
    expected(what, "an integer of 64 bits");
  return static_cast<std::int64_t>(value.get<std::uint64_t>());
}

std::int64_t size(const Json& value, const char* what) {
  if (!value.is_number_unsigned()) expected(what, "an integer and not negative");
  return integer(value, what);
}

}  // namespace effv2
