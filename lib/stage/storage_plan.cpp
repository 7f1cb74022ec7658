#include "stage/storage_plan.hpp"

#include <fmt/format.h>

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

}  // namespace

std::string describe_storage(const Context& c) {
    const dit::Dit dit(dit::load_config(c.base_transformer() / "config.json"));
    const auto& config = c.config;
    const auto number = [&](const char* key) { return static_cast<double>(config.integer(key)); };
    // Samples are as large as their pictures: on average over the prompts, each over its sizes.
    double pool = 0, area = 0, pools = 0;
    for (const std::string& task : config.tasks()) {
        const auto prompts = read_prompts(config.text("task." + task + ".train"), task, c.kind(task));
        const double asked = number("curate.prompts"), found = static_cast<double>(prompts.size());
        pool += asked > 0 ? std::min(asked, found) : found;
        for (const Prompt& prompt : prompts) {
            const auto sizes = possible_sizes(c, prompt);
            for (const model::PictureSize& size : sizes)
                area += static_cast<double>(size.height * size.width) / static_cast<double>(sizes.size());
        }
        pools += found;
    }
    area /= pools;
    const double latent = area / (model::pixels_per_latent * model::pixels_per_latent) *
                          static_cast<double>(dit.config().in_channels) * 4;
    const double picture = area * 4, steps = number("sampling.steps");
    const double trained_steps = config.text("steps.choice") == "all" ? steps : number("steps.count");
    const double sample = 2 * trained_steps * latent, summary = latent + picture;
    const double iteration = number("rollout.prompts_per_iteration") * number("rollout.group_size");
    const double numbers = static_cast<double>(dit.table().count());
    const nn::StorageFormat storage = c.storage(dit.table());
    double weights = 0, trained = numbers;
    for (int i = 0; i < dit.table().size(); ++i)
        weights += static_cast<double>(dit.table().spec(i).shape.elements()) *
                   static_cast<double>(size_of(storage.dtypes[static_cast<std::size_t>(i)]));
    if (c.lora().rank > 0) {
        trained = static_cast<double>(nn::LoraTable(dit.table(), c.lora()).table().count());
        weights = trained * 4;
    }
    // Two moments; with a moving average its weights and its place in the state; the optimizer's own weights where they are
    // stored in less than fp32.
    const bool averages = config.number("grpo.ema") > 0;
    const double policy = weights * (averages ? 2 : 1) +
                          trained * 4 * (2 + (averages ? 1 : 0) + (storage.is_exact() || c.lora().rank > 0 ? 0 : 1));
    const std::string keep = config.text("storage.keep");
    const auto kept = [&](double states, double rest) {
        return keep == "all" ? states + rest : keep == "summary" ? rest : 0.0;
    };

    double iterations = 0, rounds = 0;
    for (const std::string& task : config.tasks())
        if (config.flag("pipeline.teachers")) iterations += static_cast<double>(c.iterations(task));
    if (config.flag("pipeline.mix")) iterations += static_cast<double>(c.iterations(mix_policy));
    if (config.flag("pipeline.teachers")) rounds = number("distill.rounds");
    const double dump = static_cast<double>(config.tasks().size()) * number("distill.prompts") *
                        number("distill.group_size");
    struct Row {
        const char* what;
        double each, count, kept;
    };
    const Row rows[] = {
        {"curation: group of a prompt", number("curate.group_size") * summary,
         config.flag("curate.enabled") ? pool : 0.0, 1},
        {"rollout: samples of an iteration", iteration * (sample + summary), iterations,
         kept(iteration * sample, iteration * summary) / (iteration * (sample + summary))},
        {"policy, optimizer state", policy, iterations, 1},
        {"dumps of a round", dump * (3 * steps * latent + summary), rounds,
         kept(dump * 3 * steps * latent, dump * summary) / (dump * (3 * steps * latent + summary))},
        {"student, optimizer state", 3 * weights, rounds, 1}};
    std::string text =
        fmt::format("{:<36}{:>12}{:>8}{:>14}\n", "storage.keep = " + keep, "each", "times", "kept");
    double total = 0, largest = 0;
    for (const Row& r : rows) {
        text += fmt::format("{:<36}{:>12}{:>8.0f}{:>14}\n", r.what, size_text(r.each), r.count,
                            size_text(r.each * r.count * r.kept));
        total += r.each * r.count * r.kept;
        if (r.count > 0) largest = std::max(largest, r.each * (1 - r.kept));
    }
    return text + fmt::format("{:<36}{:>12}{:>8}{:>14}\n", "in all, and the most at one time", "",
                              "",
                              fmt::format("{}, {}", size_text(total), size_text(total + largest)));
}

}  // namespace atelier::stage
