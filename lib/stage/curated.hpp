#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace atelier::stage {

/// Weights of a task's reward dimensions by category: category -> dimension -> weight.
using CategoryWeights = std::map<std::string, std::map<std::string, double>>;

/// What curation found of a pool of prompts: prompts/<task>.h5.
///
/// HDF5: / attributes schema = "atelier.prompts", schema_version, config_hash, pool_hash; /number
/// u64, /id, /text, /category, /verdict (strings), /kept u8, /mean f32, /range f32 [P];
/// /weights/<category>/{dimension (strings), weight f32, mean_std f32} [K].
struct Curated {
    std::string config_hash, pool_hash;
    std::vector<std::uint64_t> number;  ///< place in the pool's file
    std::vector<std::string> id, text, category, verdict;
    std::vector<std::uint8_t> kept;
    std::vector<float> mean, range;  ///< of the group's totals, points
    CategoryWeights weights;
    CategoryWeights mean_std;  ///< mean within-group standard deviation, points
    std::vector<std::uint64_t> kept_numbers() const;
};

/// What training takes of it.
struct Choice {
    std::string pool_hash;
    std::vector<std::uint64_t> kept;  ///< places in the pool's file
    CategoryWeights weights;
};

/// Writes the file under `path` (a temporary name: publishing is the caller's). Throws Error(io).
void write_curated(const std::filesystem::path& path, const Curated& curated);
/// Throws Error(input) naming file and dataset.
Curated read_curated(const std::filesystem::path& path);
/// The same, without the texts.
Choice read_choice(const std::filesystem::path& path);

}  // namespace atelier::stage
