#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace atelier::io {

inline constexpr const char* trajectory_index_name = "trajectories.h5";

/// How many shards, and samples, one index maps at most. HDF5 keeps some 20 KiB for each file of a virtual dataset that is written, and
/// a file open for each that is read: most systems allow 1,024.
inline constexpr std::size_t indexed_shards = 512, indexed_samples = 16384;

/// Publishes trajectories.h5 beside a stage's shards: one file in the shards' own layout, so that a reader sees all samples as one.
/// States, velocities, latents, pictures and reasons are virtual datasets over the shards; prompts' texts and the columns of a few
/// numbers a sample are stored anew (`prompt` counts the index's own prompts, shards count theirs from 0); reference pictures are
/// links. Of more shards or samples than one index maps it is an index of indices, trajectories-00000.h5 and on, and all its
/// datasets but the prompts' numbers are virtual. The shards must have one layout: the same latent shapes and dimensions; a dimension
/// that some shards lack is left out. Memory is that of one index, however many shards there are, and 4 bytes a sample.
/// Returns the names of what was published. Throws Error(input) naming the shard that differs.
std::vector<std::string> publish_trajectory_index(const std::filesystem::path& directory,
                                                  std::span<const std::string> shards,
                                                  std::size_t most_shards = indexed_shards,
                                                  std::size_t most_samples = indexed_samples);

}  // namespace atelier::io
