#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace atelier::io {

/// Attributes of a trajectory shard's root.
struct TrajectoryHeader {
    std::string run_id, stage, task, sampler, guidance_train, log_prob, config_hash, model_hash, code_version, created_utc;
    std::int64_t iteration = 0, rank = 0, world_size = 1;
    double eta = 0, guidance_scale = 1;
    /// Of what pictures and scores were made from beside configuration and model: the scorer's files, the prompts, their pictures; of a teacher
    /// dump, the teacher's weights. Empty in indices and in shards of versions before it.
    std::string inputs_hash{};
};

struct ReferenceImage {
    std::uint32_t prompt = 0;
    std::int64_t height = 0, width = 0;
    std::vector<std::uint8_t> rgba;  ///< [height, width, 4]; empty where it was not read
    bool operator==(const ReferenceImage&) const = default;
};

struct TrajectoryPrompts {
    std::vector<std::string> id, text, negative, category, task, attributes;  ///< [P]; attributes are JSON
    std::vector<ReferenceImage> images;
};

/// One dimension's scores, [S] each.
struct RewardColumn {
    std::vector<float> score, seconds;
    std::vector<std::uint8_t> present;
    std::vector<std::string> reason;
};

/// How far a sample got.
enum class SampleStatus : std::uint8_t { complete = 0, reward_absent = 1, group_dropped = 2 };

/// All samples of one latent shape. L = height * width, S samples, N steps, K trained steps, C channels.
struct TrajectorySamples {
    std::int64_t height = 0, width = 0;              ///< latent tokens
    std::int64_t channels = 0, steps = 0, trained = 0;
    std::int64_t picture_height = 0, picture_width = 0;
    std::vector<std::uint64_t> sample_id;            ///< [S]
    std::vector<std::uint32_t> prompt, member;       ///< [S]
    std::vector<std::uint64_t> noise_key;            ///< [S, 2]: low, high
    std::vector<float> sigma;                        ///< [S, N + 1]
    std::vector<std::uint8_t> is_sde;                ///< [S, N]
    std::vector<std::uint32_t> trained_step;         ///< [S, K]
    std::vector<float> x, x_next;                    ///< [S, K, L, C]
    std::vector<float> log_prob;                     ///< [S, K], of the policy that is trained
    std::vector<float> log_prob_guided;              ///< [S, K], of the guided velocity that drew; empty where that is what is trained
    std::vector<float> teacher_velocity;             ///< [S, K, L, C] in teacher dumps, else empty
    std::vector<float> latents;                      ///< [S, L, C]
    std::vector<std::uint8_t> picture;               ///< [S, picture_height, picture_width, 4]
    std::map<std::string, RewardColumn> reward;      ///< by dimension; empty in teacher dumps
    std::map<std::string, RewardColumn> truth;       ///< what a second scorer says (reward.truth): told beside, never trained on; else empty
    std::vector<float> total, advantage;             ///< [S]
    std::vector<std::uint8_t> status;                ///< [S], SampleStatus
    std::int64_t samples() const { return static_cast<std::int64_t>(sample_id.size()); }
    std::int64_t tokens() const { return height * width; }
};

/// Leaves out the trained steps: states, log-probabilities, teacher velocities (K becomes 0).
void drop_states(TrajectorySamples& samples);

/// One HDF5 file of samples that were drawn together; opened by h5dump, h5py and HDFView without plug-ins.
struct TrajectoryShard {
    static constexpr const char* schema = "atelier.trajectory";
    static constexpr std::int64_t schema_version = 1;
    TrajectoryHeader header;
    TrajectoryPrompts prompts;
    std::vector<TrajectorySamples> shapes;
};

/// Writes a shard under `path` (a temporary name: publishing is the caller's). Throws Error(io), Error(internal) for columns
/// whose sizes do not agree.
void write_trajectory(const std::filesystem::path& path, const TrajectoryShard& shard);

/// What of the samples is read; the rest stays empty.
enum class TrajectoryParts {
    all,
    training,  ///< without final latents and pictures
    summary,   ///< without states and teachers' velocities
    scores_and_references,  ///< prompts with their reference pictures, keys, log-probabilities and rewards: no states, velocities, latents, pictures
    scores,                 ///< the same without the reference pictures' pixels
};

/// Reads and checks a shard: schema, datasets, shapes, dtypes, checksums, prompt numbers in range. With `config_hash` not
/// empty a shard of another configuration is refused. Throws Error(input) naming file, dataset, expected and found.
TrajectoryShard read_trajectory(const std::filesystem::path& path, const std::string& config_hash = {},
                                TrajectoryParts parts = TrajectoryParts::all);

/// One picture of a shard that was read without them: [picture_height, picture_width, 4] bytes. Throws Error(input).
std::vector<std::uint8_t> read_picture(const std::filesystem::path& path, const TrajectorySamples& shape, std::int64_t sample);

}  // namespace atelier::io
