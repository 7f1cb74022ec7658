#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/memory.hpp"
#include "distill/student_spec.hpp"
#include "stage/context.hpp"
#include "stage/trainer.hpp"

// What each stage holds in memory: the entries of its plan, made in one place from an open model or from config files alone.
namespace atelier::stage {

/// A prompt as the transformer takes it, without numbers, and the grid of its pictures.
struct GroupOutline {
    EncodedPair prompt;
    dit::Grid target;
};

/// Of groups with equal pictures the longest prompts: what memory follows from, however many groups there are.
class GroupOutlines {
  public:
    void cover(const GroupOutline& group);
    std::vector<GroupOutline> all() const;

  private:
    std::map<std::string, GroupOutline> groups_;  ///< by sizes of the references and of the target
};

/// What entries are made from.
struct ModelOutline {
    const dit::Dit* dit = nullptr;
    flow::ScheduleConfig schedule;
    /// Bytes: of the transformer's weights, of the frozen parts' weights, of these parts' buffers.
    Bytes parameters, frozen, text_encoder, autoencoder;
    std::vector<GroupOutline> groups;
    /// The largest grid of all groups; 0 x 0 where there are none.
    dit::Grid largest() const;
};

/// Bytes of one sample of a trajectory shard: `steps` states before and after a step, `velocities` teacher velocities, final latents and
/// picture.
std::size_t sample_bytes(dit::Grid target, std::int64_t channels, std::int64_t steps, std::int64_t velocities);
/// Bytes of its picture.
std::size_t picture_bytes(dit::Grid target);

/// Weights, the frozen parts' buffers, and `decoded` pictures at once.
void hold_model(MemoryPlan& plan, const ModelOutline& model, std::int64_t decoded);

/// What scoring takes of a rank that samples.
struct ScoringMemory {
    std::size_t in_work = 1;     ///< samples at once at most
    Bytes judge;                 ///< of what scores; none: it is on other ranks
    bool sends_sources = false;  ///< each picture is sent with its prompt's own; on threads of this rank they share those
};

/// Groups that may wait for their scores before the oldest is waited for, with so many samples `in_work`.
std::size_t most_pending(std::size_t in_work, int members);

/// Sampling of groups, their scores, their shards. Returns the bytes of a group's workspace.
Bytes hold_rollout(MemoryPlan& plan, const ModelOutline& model, const rl::SamplingSpec& spec, bool keeps_states,
                         const ScoringMemory& scoring);

/// Updates from groups. `base_weights`: bytes of the base's own weights beside the policy's, where a KL term needs them.
struct GrpoMemory {
    bool has_kl = false;
    Bytes base_weights;
    TrainerBytes trainer;
    bool has_snapshots = false;
};
struct GrpoWorkspaces {
    Bytes training, base;
};
GrpoWorkspaces hold_grpo(MemoryPlan& plan, const ModelOutline& model, const rl::SamplingSpec& spec, dit::Keep keep, const GrpoMemory& memory);

/// The student's trajectories and the teacher's velocities of `groups` groups, `resident` at a time. `averaging`: bytes of host memory that the
/// mean of the teachers takes. Returns the bytes of the trajectories' workspace.
Bytes hold_dump(MemoryPlan& plan, const ModelOutline& model, const distill::StudentSpec& spec, bool guided, std::size_t groups,
                std::size_t resident, std::size_t averaging);

/// Training on dumps. Returns the bytes of the trajectories' workspace.
Bytes hold_distill(MemoryPlan& plan, const ModelOutline& model, const distill::StudentSpec& spec, dit::Keep keep,
                         const TrainerBytes& trainer, bool has_snapshots);

/// Pictures of held-out prompts: `pictures` of each, shards of `shard_pictures`, sheets of `rows` by task. Returns the bytes of the
/// sampling's workspace.
struct EvaluationMemory {
    std::size_t pictures = 1, shard_pictures = 1, candidates = 1;
    std::int64_t micro_batch = 1;
    std::vector<std::size_t> rows;
    bool guided = false;
    ScoringMemory scoring;
};
Bytes hold_evaluation(MemoryPlan& plan, const ModelOutline& model, const EvaluationMemory& memory);

}  // namespace atelier::stage
