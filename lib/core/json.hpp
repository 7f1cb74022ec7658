#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace atelier {

/// Deepest nesting of arrays and objects that is read: JSON's values are walked by recursion, and a file of brackets alone must not
/// take the stack.
inline constexpr int max_json_depth = 128;

/// The value of a JSON text. `place` (a file, a line) stands in messages. Throws Error(input): no JSON (with the place where it
/// ends to be), nested too deep, or a key that stands twice in an object (one of the two would silently be lost).
nlohmann::json parse_json(std::string_view text, const std::string& place);
/// The same without what the outermost object has under `left_out`, which takes no memory.
nlohmann::json parse_json_without(std::string_view left_out, std::string_view text, const std::string& place);

/// The same of a file. Throws Error(input) if there is none, Error(io) if the system refuses to open it or to read it to its end.
nlohmann::json read_json(const std::filesystem::path& path);

}  // namespace atelier
