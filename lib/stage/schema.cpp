#include "stage/schema.hpp"

namespace atelier::stage {

using Text = std::string;
using Integer = std::int64_t;
using List = std::vector<std::string>;

const std::vector<config::Key>& schema() {
    static const std::vector<config::Key> all = [] {
        std::vector<config::Key> keys{
            {.name = "run.seed", .fallback = Integer{1}, .meaning = "seed of everything random", .low = 0},
            {.name = "run.model", .fallback = Text(""), .meaning = "diffusers directory of the base model", .is_path = true},
            {.name = "pipeline.teachers", .fallback = true, .meaning = "train one teacher per task and distil them into a student"},
            {.name = "pipeline.mix", .fallback = false, .meaning = "train the baseline too: one policy, all tasks' rewards"},
            {.name = "task.*.kind", .fallback = Text("t2i"), .meaning = "what prompts ask for", .choices = {"t2i", "edit"}},
            {.name = "task.*.train", .fallback = Text(""), .meaning = "prompt file (JSON lines) to train on", .is_path = true},
            {.name = "task.*.heldout", .fallback = Text(""), .meaning = "prompt file for evaluation", .is_path = true},
            {.name = "task.*.negative", .fallback = Text(""), .meaning = "negative prompt, for guidance"},
            {.name = "task.*.iterations", .fallback = Integer{0}, .meaning = "of this task's teacher; 0: grpo.iterations", .low = 0},
            {.name = "task.*.learning_rate", .fallback = 0.0, .meaning = "of this task's teacher; 0: grpo.learning_rate", .low = 0},
            {.name = "task.*.weights", .fallback = List{}, .meaning = "pinned reward weights, \"category/dimension=weight\"; those not named are calibrated"},
            {.name = "mix.iterations", .fallback = Integer{0}, .meaning = "of the mixed policy; 0: grpo.iterations", .low = 0},
            {.name = "mix.learning_rate", .fallback = 0.0, .meaning = "of the mixed policy; 0: grpo.learning_rate", .low = 0},
            {.name = "sampling.height", .fallback = Integer{128}, .meaning = "height of generated pictures", .unit = "pixels", .low = 32},
            {.name = "sampling.width", .fallback = Integer{128}, .meaning = "width of generated pictures", .unit = "pixels", .low = 32},
            {.name = "sampling.output_resolution", .fallback = Integer{128}, .meaning = "side of a square of the area in which references are used", .unit = "pixels", .low = 32},
            {.name = "sampling.steps", .fallback = Integer{10}, .meaning = "denoising steps", .low = 1},
            {.name = "sampling.sampler", .fallback = Text("flow_sde"), .meaning = "sampler of the trained steps", .choices = {"flow_sde", "dance_sde", "cps"}},
            {.name = "sampling.eta", .fallback = 0.7, .meaning = "noise of the sampler", .low = 0},
            {.name = "sampling.log_prob", .fallback = Text("mean"), .meaning = "reduction of the log-probability over latent elements", .choices = {"mean", "sum", "squared_error"}},
            {.name = "sampling.guidance_scale", .fallback = 1.0, .meaning = "guidance scale of the base and the teachers while sampling", .low = 1},
            {.name = "sampling.guidance_rescale", .fallback = false, .meaning = "rescale guided velocities to the conditional's norm"},
            {.name = "sampling.guidance_train", .fallback = Text("conditional"), .meaning = "whose log-probability is trained", .choices = {"conditional", "guided", "none"}},
            {.name = "steps.choice", .fallback = Text("window"), .meaning = "which steps are SDE and trained", .choices = {"all", "window", "subset"}},
            {.name = "steps.count", .fallback = Integer{3}, .meaning = "how many (window, subset)", .unit = "steps", .low = 1},
            {.name = "steps.gamma", .fallback = 1.0, .meaning = "draws lean to noise by sigma^gamma"},
            {.name = "steps.window_begin", .fallback = Integer{-1}, .meaning = "first step of the window; -1: drawn each iteration", .low = -1},
            {.name = "curate.enabled", .fallback = true, .meaning = "keep only prompts whose groups tell members apart"},
            {.name = "curate.group_size", .fallback = Integer{4}, .meaning = "members drawn of each prompt by the base", .low = 2},
            {.name = "curate.prompts", .fallback = Integer{0}, .meaning = "prompts drawn from the pool; 0: all", .low = 0},
            {.name = "curate.range_min", .fallback = 0.5, .meaning = "kept if the weighted reward ranges over this within the group", .unit = "points", .low = 0, .high = 4},
            {.name = "curate.mean_low", .fallback = 1.0, .meaning = "kept if the group's mean reward is not below", .unit = "points", .low = 1, .high = 5},
            {.name = "curate.mean_high", .fallback = 5.0, .meaning = "kept if the group's mean reward is not above", .unit = "points", .low = 1, .high = 5},
            {.name = "curate.calibrate", .fallback = true, .meaning = "weigh dimensions so that each has the same share in the advantage's variance; otherwise all weigh the same"},
            {.name = "rollout.prompts_per_iteration", .fallback = Integer{8}, .meaning = "prompt groups of an iteration", .low = 1},
            {.name = "rollout.group_size", .fallback = Integer{8}, .meaning = "members of a group", .low = 2},
            {.name = "rollout.micro_batch", .fallback = Integer{8}, .meaning = "members run together; divides the group", .low = 1},
            {.name = "rollout.shared_noise", .fallback = false, .meaning = "all members of a group start from the same noise; what tells them apart is then the trained steps' noise alone"},
            {.name = "reward.min_spread", .fallback = 0.3, .meaning = "a dimension whose scores within a group range over less than this says nothing about the group", .unit = "points", .low = 0, .high = 4},
            {.name = "reward.gate", .fallback = 0.0, .meaning = "text to image: a dimension scored below caps the tiers above it; 0: never", .unit = "points", .low = 0, .high = 5},
            {.name = "reward.workers", .fallback = Integer{2}, .meaning = "samples scored at once by a rank, beside the sampling", .low = 1, .high = 4096},
            {.name = "reward.queue", .fallback = Integer{256}, .meaning = "samples of a rank that may wait to be scored", .low = 1},
            {.name = "reward.retries", .fallback = Integer{2}, .meaning = "further attempts at a sample whose scoring failed", .low = 0},
            {.name = "reward.max_absent", .fallback = 0.1, .meaning = "the stage fails if a larger share of its samples could not be scored", .low = 0, .high = 1},
            {.name = "reward.test_delay", .fallback = 0.0, .meaning = "for tests: every attempt takes this much longer", .unit = "seconds", .low = 0},
            {.name = "reward.test_failures", .fallback = 0.0, .meaning = "for tests: share of attempts that fail", .low = 0, .high = 1},
            {.name = "grpo.clip", .fallback = 1e-3, .meaning = "the ratio is clipped to 1 ± this", .low = 0},
            {.name = "grpo.learning_rate", .fallback = 1e-4, .meaning = "AdamW's rate", .low = 0},
            {.name = "grpo.warm_up", .fallback = Integer{0}, .meaning = "updates over which the rate rises", .low = 0},
            {.name = "grpo.weight_decay", .fallback = 0.0, .meaning = "AdamW's decoupled decay", .low = 0},
            {.name = "grpo.beta1", .fallback = 0.9, .meaning = "AdamW's first moment", .low = 0, .high = 0.99999},
            {.name = "grpo.beta2", .fallback = 0.99, .meaning = "AdamW's second moment", .low = 0, .high = 0.99999},
            {.name = "grpo.max_grad_norm", .fallback = 1.0, .meaning = "gradients are scaled down to this norm; 0: never", .low = 0},
            {.name = "grpo.minibatches", .fallback = Integer{1}, .meaning = "parts that a rollout's groups are cut into, one optimizer step each", .low = 1},
            {.name = "grpo.epochs", .fallback = Integer{1}, .meaning = "passes over a rollout", .low = 1},
            {.name = "grpo.iterations", .fallback = Integer{30}, .meaning = "rollouts and updates of a teacher", .low = 1},
            {.name = "grpo.ratio_norm", .fallback = false, .meaning = "GRPO-Guard's normalised ratio; not with guidance_train = conditional under guidance"},
            {.name = "grpo.kl", .fallback = Text("none"), .meaning = "distance to the base that is added to the loss", .choices = {"none", "gaussian", "velocity"}},
            {.name = "grpo.kl_beta", .fallback = 0.0, .meaning = "its weight", .low = 0},
            {.name = "grpo.ema", .fallback = 0.0, .meaning = "decay of the weights' moving average, which the teacher then is; 0: none", .low = 0, .high = 0.999999},
            {.name = "distill.rounds", .fallback = Integer{4}, .meaning = "dumps of the student's trajectories, each followed by training on them", .low = 1},
            {.name = "distill.start", .fallback = Text("average"), .meaning = "what the student starts from", .choices = {"base", "average"}},
            {.name = "distill.prompts", .fallback = Integer{16}, .meaning = "prompts of each teacher in a round", .low = 1},
            {.name = "distill.group_size", .fallback = Integer{4}, .meaning = "trajectories of each prompt", .low = 1},
            {.name = "distill.sampler", .fallback = Text("ode"), .meaning = "the student's own sampler", .choices = {"ode", "flow_sde", "dance_sde", "cps"}},
            {.name = "distill.eta", .fallback = 0.7, .meaning = "its noise (also that of the kl loss along the ODE)", .low = 0},
            {.name = "distill.loss", .fallback = Text("velocity"), .meaning = "squared distance of velocities, or the transition means' KL", .choices = {"velocity", "kl"}},
            {.name = "distill.learning_rate", .fallback = 3e-4, .meaning = "AdamW's rate", .low = 0},
            {.name = "distill.batch", .fallback = Integer{8}, .meaning = "prompts of all teachers in an optimizer step", .low = 1},
            {.name = "distill.epochs", .fallback = Integer{1}, .meaning = "passes over a round's trajectories", .low = 1},
            {.name = "distill.max_grad_norm", .fallback = 1.0, .meaning = "gradients are scaled down to this norm; 0: never", .low = 0},
            {.name = "distill.resident_groups", .fallback = Integer{64}, .meaning = "groups a rank samples before it changes student for teacher", .low = 1},
            {.name = "evaluate.samples", .fallback = Integer{1}, .meaning = "pictures of each held-out prompt", .low = 1},
            {.name = "storage.keep", .fallback = Text("all"), .meaning = "of a rollout once its update is published", .choices = {"all", "summary", "nothing"}},
            {.name = "compute.threads", .fallback = Integer{1}, .meaning = "threads of a rank", .low = 1, .high = 1024},
            {.name = "compute.recompute", .fallback = false, .meaning = "keep block inputs only and repeat forward passes in the backward pass"},
            {.name = "slurm.partition", .fallback = Text(""), .meaning = "partition of every job; empty: the cluster's default"},
            {.name = "slurm.account", .fallback = Text(""), .meaning = "account of every job; empty: the user's default"},
            {.name = "slurm.launcher", .fallback = Text("srun --mpi=pmix"), .meaning = "starts the ranks of a job with more than one"},
            {.name = "slurm.options", .fallback = List{}, .meaning = "further options of sbatch, one each"},
            {.name = "slurm.stop_early", .fallback = Integer{60}, .meaning = "a job is asked to publish and requeue this long before its time limit", .unit = "seconds", .low = 1}};
        for (const char* stage : {"curate", "rollout", "grpo", "teacher-dump", "distill", "evaluate"}) {
            const Text prefix = Text("slurm.") + stage + ".";
            keys.push_back({.name = prefix + "ranks", .fallback = Integer{1}, .meaning = "MPI ranks", .low = 1});
            keys.push_back({.name = prefix + "nodes", .fallback = Integer{1}, .meaning = "nodes the ranks are spread over", .low = 1});
            keys.push_back({.name = prefix + "memory", .fallback = Text("2G"), .meaning = "memory of a node"});
            keys.push_back({.name = prefix + "time", .fallback = Text("01:00:00"), .meaning = "time limit"});
            keys.push_back({.name = prefix + "gpus_per_node", .fallback = Integer{0}, .meaning = "GPUs of a node", .low = 0});
        }
        return keys;
    }();
    return all;
}

}  // namespace atelier::stage
