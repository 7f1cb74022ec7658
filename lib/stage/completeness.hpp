#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.hpp"
#include "io/publish.hpp"
#include "io/safetensors.hpp"

namespace atelier::stage {

/// Which of a product's files a stage reads, by their names in the manifest: those are compared with their hashes, the others with their
/// sizes alone.
using Reads = bool (*)(const std::string& name);
bool reads_everything(const std::string& name);
/// A policy's weights, or its adapter: not the optimizer's state, not the moving average.
bool reads_weights(const std::string& name);
/// A policy's weights and the optimizer's state: what training goes on from.
bool reads_weights_and_state(const std::string& name);
/// The moving average of a policy's weights.
bool reads_average(const std::string& name);

/// Throws Error(input) on every rank, the same, unless the directory's manifest is there and its outputs match; `what` says how to make
/// it. Outputs are dealt out to the ranks in the order of their names, so that together they read each byte once: a group's shard is
/// compared by the rank that trains on it. Collective.
void require_complete(comm::Communicator& ranks, const std::filesystem::path& directory, const std::string& what,
                      Reads reads = reads_everything);

/// The same of a transformer directory that may be of no run: where no manifest names its files there is nothing to compare. Collective.
void require_unchanged(comm::Communicator& ranks, const std::filesystem::path& transformer);

/// Of a published file: what its directory's manifest says, where that names it, else taken from its bytes. A stage that reads the file
/// has it compared by require_complete().
io::FileDigest stated_digest(const std::filesystem::path& directory, const std::string& name);

/// Hash of a directory's transformer weights (all shards), or of its adapter: what names the policy that made a file. As
/// stated_digest(); where there is no manifest each shard is read by one rank. Collective.
std::string weights_hash(comm::Communicator& ranks, const std::filesystem::path& transformer);

/// The same by the manifest alone: no file of weights is looked at. Nothing where no manifest names any.
std::optional<std::string> stated_weights_hash(const std::filesystem::path& transformer);

/// The files that hold tensors, in the order of their names.
std::vector<std::filesystem::path> files_of(const io::Safetensors& stored);

/// Of the files of a judge's weights, by their names: taken from their bytes, whatever a manifest says, each by one rank. Collective.
std::map<std::string, io::FileDigest> judge_weight_digests(comm::Communicator& ranks, const std::filesystem::path& judge);

}  // namespace atelier::stage
