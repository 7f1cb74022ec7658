#pragma once

#include <filesystem>
#include <vector>

#include "core/numbers.hpp"
#include "nn/sharded.hpp"
#include "stage/context.hpp"

namespace atelier::stage {

/// AdamW's memory of one policy and the moving average of its weights: what makes a policy continue as if it had never stopped.
///
/// On disk numbers carry their place in the flat layout of the parameter table, so that another number of ranks can go on: one file
/// training.h5, or one a rank (training-00000-of-00004.h5), each with "piece" i64 [P, 2] (place and count of each run of numbers) and
/// the vectors' numbers one run behind another.
struct TrainingState {
    static constexpr const char* file_name = "training.h5";
    std::int64_t update = 0;  ///< optimizer steps made
    Numbers m, v;  ///< a rank's shard
    Numbers ema;   ///< the same, or empty without moving average
    /// Weights before they are rounded to what is stored, or empty where they are stored as fp32.
    Numbers master;

    /// Reads, to a device or not, a rank's shard from a policy's directory, whatever number of ranks wrote it; the base has none: nothing learnt yet.
    /// Throws Error(input) naming the file or the numbers that are in none.
    static TrainingState load(const std::filesystem::path& policy, const nn::Partition& partition, int rank, Device device = Device::cpu);
    /// Where it is.
    Device device() const { return m.tensor().device(); }
    TrainingState copy_to(Device device) const;
    /// Writes a rank's shard, with the rank's weights where they are given; takes piece_bytes beside it. Returns the file's name. Throws
    /// Error(io).
    std::string save(const std::filesystem::path& directory, const nn::Partition& partition, int rank, const Context& context,
                     const Tensor& weights = {}) const;
    /// Numbers go to the file, and come from it, through a buffer of this size.
    static constexpr std::size_t piece_bytes = 16 << 20;
    /// The weights of such files, to wherever `weights` [shard] is.
    static void load_weights(const std::filesystem::path& directory, const nn::Partition& partition, int rank, const Tensor& weights);
    /// Whether this is the name of one.
    static bool is_file(const std::string& name) { return name.starts_with("training") && name.ends_with(".h5"); }
    /// The name under which a rank's shard is written.
    static std::string name_of_shard(int rank, int ranks);
    /// The directory's files: none, or a complete set; none of an empty path. Throws Error(input) naming a missing one.
    static std::vector<std::filesystem::path> files(const std::filesystem::path& policy);
};

}  // namespace atelier::stage
