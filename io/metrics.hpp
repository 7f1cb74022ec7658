#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

namespace atelier::io {

/// Puts a record into a file of JSON lines, in place of one with the same `stage`, `policy` and
/// `iteration`: a stage that is run again leaves one line. Jobs that write at the same time take
/// turns. Throws Error(io), Error(input) for a damaged file.
void put_metrics(const std::filesystem::path& path, const nlohmann::json& record);

/// Its records, in order; none where there is no such file. Throws Error(input) for a damaged one.
std::vector<nlohmann::json> read_metrics(const std::filesystem::path& path);

}  // namespace atelier::io
