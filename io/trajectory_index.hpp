#pragma once

#include <filesystem>
#include <span>
#include <string>

namespace atelier::io {

inline constexpr const char* trajectory_index_name = "trajectories.h5";

/// Publishes trajectories.h5 beside a stage's shards: one file in the shards' own layout whose
/// datasets are virtual, so that a reader sees all samples as one. `prompt` is stored anew (shards
/// count their own prompts from 0), prompt texts too; reference pictures are links. The shards must
/// have one layout: the same latent shapes and dimensions; a dimension that some shards lack is
/// left out. Throws Error(input) naming the shard that differs.
void publish_trajectory_index(const std::filesystem::path& directory,
                              std::span<const std::string> shards);

}  // namespace atelier::io
