#include "stage/storage_plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "io/hdf5.hpp"
#include "model/dit/dit.hpp"
#include "model/processor/image_inputs.hpp"
#include "stage/picture_sizes.hpp"

namespace atelier::stage {
namespace {

std::string size_text(double bytes) {
    const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int unit = 0;
    while (bytes >= 1024 && unit < 4) bytes /= 1024, ++unit;
    return fmt::format("{:.1f} {}", bytes, units[unit]);
}

double area_of(const std::vector<model::PictureSize>& sizes) {
    double area = 0;
    for (const model::PictureSize& size : sizes) area += static_cast<double>(size.height * size.width) / static_cast<double>(sizes.size());
    return area;
}

/// What the prompts say about sizes on disk.
struct Pool {
    double prompts = 0;  ///< that curation draws groups of
    double area = 0;     ///< of a picture on average, in pixels
    std::string notes;
};
Pool pool_of(const Context& c) {
    Pool pool;
    double weight = 0;
    const auto asked = static_cast<double>(c.config.integer("curate.prompts"));
    for (const std::string& task : c.config.tasks()) {
        const std::filesystem::path file = c.config.text("task." + task + ".train");
        if (!std::filesystem::exists(file)) {
            pool.notes += fmt::format("{} is not there: pictures of {} count as the configuration has them{}\n", file.string(), task,
                                      c.config.flag("curate.enabled") && asked == 0 ? ", its curation is not counted" : "");
            pool.prompts += asked;
            pool.area += area_of(configured_sizes(c.config, task));
            weight += 1;
            continue;
        }
        const PromptPool prompts(file, task, c.kind(task));
        const auto found = static_cast<double>(prompts.size());
        pool.prompts += asked > 0 ? std::min(asked, found) : found;
        double area = 0;
        for (std::size_t i = 0; i < prompts.size(); ++i) area += area_of(possible_sizes(c, prompts.at(i)));
        pool.area += area / found;
        weight += 1;
    }
    pool.area /= weight;
    return pool;
}

/// How weights are stored; where no weight is there to say it, `kept` counts as bf16.
nn::StorageFormat format_of(const Context& c, const nn::ParameterTable& table, std::string& notes) {
    auto dtype = nn::parse_storage_dtype(c.config.text("checkpoint.dtype"));
    if (!dtype) {
        const auto has_weights = [&](const std::filesystem::path& directory) {
            return std::filesystem::is_directory(directory) &&
                   std::any_of(std::filesystem::directory_iterator(directory), std::filesystem::directory_iterator(),
                               [](const auto& entry) { return entry.path().extension() == ".safetensors"; });
        };
        if (has_weights(c.base_transformer())) return c.storage(table);
        notes += fmt::format("{} holds no weights: checkpoint.dtype = kept counts as bf16\n", c.base_transformer().string());
        dtype = DType::bf16;
    }
    nn::StorageFormat format;
    format.dtypes.assign(static_cast<std::size_t>(table.size()), *dtype);
    return format;
}

struct Row {
    std::string what;
    double each, count, kept;  ///< bytes, how many are made, bytes that stay
};

}  // namespace

std::string describe_storage(const Context& c) {
    const dit::Dit dit(dit::load_config(c.base_transformer() / "config.json"));
    const auto& config = c.config;
    const auto number = [&](const char* key) { return static_cast<double>(config.integer(key)); };
    Pool pool = pool_of(c);
    const nn::StorageFormat storage = format_of(c, dit.table(), pool.notes);
    const double latent = pool.area / (model::pixels_per_latent * model::pixels_per_latent) * static_cast<double>(dit.config().in_channels) * 4;
    const double picture = pool.area * 4, steps = number("sampling.steps");
    const double trained_steps = config.text("steps.choice") == "all" ? steps : number("steps.count");
    const double sample = 2 * trained_steps * latent, summary = latent + picture;
    const double samples = number("rollout.prompts_per_iteration") * number("rollout.group_size");

    const bool adapts = c.lora().rank > 0, averages = config.number("grpo.ema") > 0, has_master = !adapts && !storage.is_exact();
    double weights = 0, vector = static_cast<double>(dit.table().count()) * 4;  // an fp32 vector of what is trained
    for (int i = 0; i < dit.table().size(); ++i)
        weights += static_cast<double>(dit.table().spec(i).shape.elements()) * static_cast<double>(size_of(storage.dtypes[static_cast<std::size_t>(i)]));
    if (adapts) weights = vector = static_cast<double>(nn::LoraTable(dit.table(), c.lora()).table().count()) * 4;
    // Two moments, and the optimizer's own weights where they are stored in less than fp32; with a moving average its place in the
    // state and its weights. Each is a dataset of whole chunks.
    const auto numbers = static_cast<std::int64_t>(vector / 4), chunk = io::hdf5::File::chunk_rows(DType::f32, {numbers});
    const std::int64_t in_whole_chunks = (numbers + chunk - 1) / chunk * chunk;
    const double stored = static_cast<double>(in_whole_chunks) * 4;
    const double student_state = stored * (2 + (has_master ? 1 : 0)), policy_state = student_state + (averages ? stored : 0);
    const double policy = weights * (averages ? 2 : 1);
    // Within a stage with the weights: checkpoint.keep of them, and one in writing.
    const double within = config.integer("checkpoint.every") > 0 ? number("checkpoint.keep") + 1 : 0;

    const std::string keep = config.text("storage.keep");
    const auto kept_share = [&](double states, double rest) { return keep == "all" ? 1.0 : keep == "summary" ? rest / (states + rest) : 0.0; };
    const double kept_states = number("storage.states");
    std::vector<double> policies;  // iterations of each
    if (config.flag("pipeline.teachers"))
        for (const std::string& task : config.tasks()) policies.push_back(static_cast<double>(c.iterations(task)));
    const auto teachers = static_cast<double>(policies.size());
    if (config.flag("pipeline.mix")) policies.push_back(static_cast<double>(c.iterations(mix_policy)));
    const double beside = static_cast<double>(policies.size()), rounds = teachers > 0 ? number("distill.rounds") : 0.0,
                 iterations = std::accumulate(policies.begin(), policies.end(), 0.0);
    const auto states_of = [&](double made) { return kept_states > 0 ? std::min(kept_states, made) : made; };
    double states = 0;
    for (const double made : policies) states += states_of(made);

    const double rollout = samples * (sample + summary), rollout_kept = kept_share(samples * sample, samples * summary);
    const double dumped = static_cast<double>(config.tasks().size()) * number("distill.prompts") * number("distill.group_size"),
                 dump = dumped * (3 * steps * latent + summary), dump_kept = kept_share(dumped * 3 * steps * latent, dumped * summary);
    const double curated = config.flag("curate.enabled") ? pool.prompts : 0.0, group = number("curate.group_size") * summary;
    const double policy_within = policy_state + vector, student_within = student_state + vector;
    const std::vector<Row> rows{{"curation: group of a prompt", group, curated, group * curated},
                                {"rollout: samples of an iteration", rollout, iterations, rollout * iterations * rollout_kept},
                                {"policy: weights", policy, iterations, policy * iterations},
                                {"policy: optimizer state", policy_state, iterations, policy_state * states},
                                {"policy: states within its stage", policy_within, within * beside, 0},
                                {"dumps of a round", dump, rounds, dump * rounds * dump_kept},
                                {"student: weights", weights, rounds, weights * rounds},
                                {"student: optimizer state", student_state, rounds, student_state * states_of(rounds)},
                                {"student: states within its stage", student_within, teachers > 0 ? within : 0, 0}};
    std::string text = pool.notes + fmt::format("{:<36}{:>12}{:>8}{:>14}\n", fmt::format("storage.keep = {}, states = {}", keep, kept_states),
                                                "each", "times", "kept");
    double total = 0;
    for (const Row& r : rows) {
        text += fmt::format("{:<36}{:>12}{:>8.0f}{:>14}\n", r.what, size_text(r.each), r.count, size_text(r.kept));
        total += r.kept;
    }
    // What goes when the next is published: of policies that train side by side, or of a round. An older state goes after the newer came.
    const auto passing = [&](double shards, double state, double state_within) {
        return shards + (kept_states > 0 ? state : 0.0) + within * state_within;
    };
    const double training = beside * passing(rollout * (1 - rollout_kept), policy_state, policy_within),
                 distilling = rounds > 0 ? passing(dump * (1 - dump_kept), student_state, student_within) : 0.0;
    return text + fmt::format("{:<36}{:>12}{:>8}{:>14}\n", "in all, and the most at one time", "", "",
                              fmt::format("{}, {}", size_text(total), size_text(total + std::max(training, distilling))));
}

}  // namespace atelier::stage
