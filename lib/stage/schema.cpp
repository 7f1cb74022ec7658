#include "stage/schema.hpp"

namespace atelier::stage {

using Text = std::string;
using Integer = std::int64_t;

const std::vector<config::Key>& schema() {
    static const std::vector<config::Key> keys{
        {.name = "run.seed", .fallback = Integer{1}, .meaning = "seed of everything random", .low = 0},
        {.name = "run.model", .fallback = Text("assets/mini/base"), .meaning = "diffusers directory of the base model"},
        {.name = "task.*.kind", .fallback = Text("t2i"), .meaning = "what prompts ask for", .choices = {"t2i", "edit"}},
        {.name = "task.*.train", .fallback = Text(""), .meaning = "prompt file (JSON lines) to train on"},
        {.name = "task.*.heldout", .fallback = Text(""), .meaning = "prompt file for evaluation"},
        {.name = "task.*.negative", .fallback = Text(""), .meaning = "negative prompt, for guidance"},
        {.name = "sampling.height", .fallback = Integer{128}, .meaning = "height of generated pictures", .unit = "pixels", .low = 32},
        {.name = "sampling.width", .fallback = Integer{128}, .meaning = "width of generated pictures", .unit = "pixels", .low = 32},
        {.name = "sampling.output_resolution", .fallback = Integer{128}, .meaning = "side of a square of the area in which references are used", .unit = "pixels", .low = 32},
        {.name = "sampling.steps", .fallback = Integer{10}, .meaning = "denoising steps", .low = 1},
        {.name = "sampling.sampler", .fallback = Text("flow_sde"), .meaning = "sampler of the trained steps", .choices = {"flow_sde", "dance_sde", "cps"}},
        {.name = "sampling.eta", .fallback = 0.7, .meaning = "noise of the sampler", .low = 0},
        {.name = "sampling.log_prob", .fallback = Text("mean"), .meaning = "reduction of the log-probability over latent elements", .choices = {"mean", "sum", "squared_error"}},
        {.name = "sampling.guidance_scale", .fallback = 1.0, .meaning = "guidance scale while sampling", .low = 1},
        {.name = "sampling.guidance_rescale", .fallback = false, .meaning = "rescale guided velocities to the conditional's norm"},
        {.name = "sampling.guidance_train", .fallback = Text("conditional"), .meaning = "whose log-probability is trained", .choices = {"conditional", "guided", "none"}},
        {.name = "steps.choice", .fallback = Text("window"), .meaning = "which steps are SDE and trained", .choices = {"all", "window", "subset"}},
        {.name = "steps.count", .fallback = Integer{3}, .meaning = "how many (window, subset)", .unit = "steps", .low = 1},
        {.name = "steps.gamma", .fallback = 1.0, .meaning = "draws lean to noise by sigma^gamma"},
        {.name = "steps.window_begin", .fallback = Integer{-1}, .meaning = "first step of the window; -1: drawn each iteration", .low = -1},
        {.name = "rollout.prompts_per_iteration", .fallback = Integer{8}, .meaning = "prompt groups of an iteration", .low = 1},
        {.name = "rollout.group_size", .fallback = Integer{8}, .meaning = "members of a group", .low = 2},
        {.name = "rollout.micro_batch", .fallback = Integer{8}, .meaning = "members run together; divides the group", .low = 1},
        {.name = "reward.min_spread", .fallback = 0.3, .meaning = "a dimension whose scores within a group range over less than this says nothing about the group", .unit = "points", .low = 0, .high = 4},
        {.name = "grpo.clip", .fallback = 1e-3, .meaning = "the ratio is clipped to 1 ± this", .low = 0},
        {.name = "grpo.learning_rate", .fallback = 1e-4, .meaning = "AdamW's rate", .low = 0},
        {.name = "grpo.weight_decay", .fallback = 0.0, .meaning = "AdamW's decoupled decay", .low = 0},
        {.name = "grpo.beta1", .fallback = 0.9, .meaning = "AdamW's first moment", .low = 0, .high = 0.99999},
        {.name = "grpo.beta2", .fallback = 0.99, .meaning = "AdamW's second moment", .low = 0, .high = 0.99999},
        {.name = "grpo.max_grad_norm", .fallback = 1.0, .meaning = "gradients are scaled down to this norm; 0: never", .low = 0},
        {.name = "grpo.updates", .fallback = Integer{1}, .meaning = "optimizer steps on one rollout", .low = 1},
        {.name = "grpo.iterations", .fallback = Integer{30}, .meaning = "rollouts and updates of a teacher", .low = 1},
        {.name = "compute.threads", .fallback = Integer{1}, .meaning = "threads of a rank", .low = 1, .high = 1024},
        {.name = "compute.recompute", .fallback = false, .meaning = "keep block inputs only and repeat forward passes in the backward pass"}};
    return keys;
}

}  // namespace atelier::stage
