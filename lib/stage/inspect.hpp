#pragma once

#include <filesystem>
#include <iosfwd>

#include "io/trajectory.hpp"

namespace atelier::stage {

/// Says what stands at `path`: a run, a stage's directory, a manifest, a shard or an index of
/// shards, curated prompts, a training state, a model, a component of one, an adapter or a safetensors file. Throws
/// Error(input) for anything else and for what is damaged.
void describe(const std::filesystem::path& path, std::ostream& out);

/// Checks every manifest at or below `path` against its outputs, and every shard's checksums,
/// layout and configuration. Says what is wrong, one line each, and returns how many faults there
/// are.
int verify(const std::filesystem::path& path, std::ostream& out);

/// Writes a shard's pictures as PNG with their scores and reasons beside them (samples.jsonl).
/// Files are named by shard, prompt (as io::file_name_of writes it) and member. `path`: a shard, or a directory of shards. Returns how many pictures were written.
int export_pictures(const std::filesystem::path& path, const std::filesystem::path& directory);

/// Recomputes the log-probabilities of a rollout's shards under the policy that sampled them, found
/// through the run directory above `path`. Says how many agree bit for bit and the largest
/// difference; returns how many differ.
std::int64_t replay(const std::filesystem::path& path, std::ostream& out);

/// The shards at `path`: itself, or those of a directory in order of their names. Throws
/// Error(input) if there are none.
std::vector<std::filesystem::path> shards_at(const std::filesystem::path& path);

}  // namespace atelier::stage
