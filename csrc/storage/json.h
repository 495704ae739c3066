// JSON as saved networks have it, stricter than the standard. The same rules are in
// effv2_kernels/container.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string_view>

namespace effv2 {

using Json = nlohmann::json;

// The object in a text: every name once, nothing behind it, and nothing deeper than a description is. Throws
// FormatError.
Json parsed_object(std::string_view text);
// The same of a list.
Json parsed_list(std::string_view text);

// Throw FormatError where a value is none. `what` names it.
const Json& object_with(const Json& value, const char* what, std::initializer_list<const char*> names);
const Json::array_t& array(const Json& value, const char* what);
const std::string& string(const Json& value, const char* what);
std::int64_t integer(const Json& value, const char* what);
std::int64_t size(const Json& value, const char* what);  // not negative, nor written so

}  // namespace effv2
