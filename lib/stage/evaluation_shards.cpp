#include "stage/evaluation_shards.hpp"

#include <algorithm>
#include <numeric>
#include <set>

#include "core/device_turn.hpp"
#include "core/progress.hpp"
#include "flow/noise.hpp"
#include "io/publish.hpp"
#include "pipeline/generate.hpp"
#include "pipeline/micro_batch.hpp"
#include "stage/gather.hpp"
#include "stage/picture_sizes.hpp"
#include "stage/scorers.hpp"

namespace atelier::stage {
namespace {

// Iteration number of evaluation seeds: no training iteration has it.
constexpr std::uint64_t evaluation_iteration = ~std::uint64_t{0};

struct Range {
    std::size_t begin, end;
};
Range prompts_of(const EvaluatedTask& task, std::size_t unit) {
    return {unit * evaluation_shard_prompts,
            std::min(task.prompts.size(), (unit + 1) * evaluation_shard_prompts)};
}

/// A prompt in front of the model.
struct Encoded {
    std::size_t index = 0;
    rl::SamplingSpec spec;  ///< on its own grid
    EncodedPair pair;
};

/// The shard's samples of a grid; new ones where it has none yet.
io::TrajectorySamples& samples_on(io::TrajectoryShard& shard, const rl::SamplingSpec& spec, std::int64_t channels) {
    for (io::TrajectorySamples& s : shard.shapes)
        if (s.height == spec.target.height && s.width == spec.target.width) return s;
    io::TrajectorySamples& s = shard.shapes.emplace_back();
    s.height = spec.target.height;
    s.width = spec.target.width;
    s.channels = channels;
    s.steps = spec.schedule.steps();
    return s;
}

/// Latents of prompts with pictures of one size, appended to the samples.
void draw(pipeline::Pipeline& model, const Context& c, bool guided, const EvaluatedTask& task, const std::vector<Encoded>& prompts,
          Workspace& workspace, io::TrajectorySamples& s) {
    pipeline::GenerateRequest r;
    r.guidance = prompts.front().spec.guidance;
    r.schedule = prompts.front().spec.schedule;
    r.target = prompts.front().spec.target;
    r.pictures = static_cast<std::int64_t>(task.pictures);
    const auto n = static_cast<std::size_t>(s.tokens() * s.channels), first = s.latents.size();
    s.latents.resize(first + prompts.size() * task.pictures * n);
    const std::span<float> latents = std::span(s.latents).subspan(first);
    for (std::size_t p = 0; p < prompts.size(); ++p) {
        const Prompt& prompt = task.prompts[prompts[p].index];
        r.conditional.push_back(&prompts[p].pair.conditional);
        if (guided) r.unconditional.push_back(&prompts[p].pair.unconditional);
        for (std::size_t m = 0; m < task.pictures; ++m) {
            const auto key = flow::sample_noise_key(c.seed(), evaluation_iteration, task_number(c.policy) ^ prompt.number, m);
            fill_normal(flow::initial_noise_key(key), latents.subspan((p * task.pictures + m) * n, n));
            s.sample_id.push_back(prompts[p].index * task.pictures + m);
            s.prompt.push_back(static_cast<std::uint32_t>(prompts[p].index % evaluation_shard_prompts));
            s.member.push_back(static_cast<std::uint32_t>(m));
            s.noise_key.insert(s.noise_key.end(), {key.low, key.high});
            s.sigma.insert(s.sigma.end(), r.schedule.sigmas.begin(), r.schedule.sigmas.end());
            s.is_sde.insert(s.is_sde.end(), static_cast<std::size_t>(s.steps), 0);
            s.status.push_back(static_cast<std::uint8_t>(io::SampleStatus::complete));
        }
    }
    const DeviceTurn turn(c.device());
    pipeline::generate_latents(model.dit(), model.dit_weights(), r, latents, workspace);
}

double scale_of(const Context& c, const EvaluationUnit& unit) { return unit.guided ? c.config.number("sampling.guidance_scale") : 1.0; }

/// Whether a shard is what would be made.
bool is_as_made(const Context& c, const io::TrajectoryShard& shard, const EvaluatedTask& task, const EvaluationUnit& unit) {
    const auto [begin, end] = prompts_of(task, unit.unit);
    std::size_t samples = 0;
    for (const io::TrajectorySamples& s : shard.shapes) samples += s.sample_id.size();
    const io::TrajectoryHeader& h = shard.header;
    return h.config_hash == c.config.hash() && h.model_hash == unit.model_hash && h.inputs_hash == unit.inputs_hash &&
           h.guidance_scale == scale_of(c, unit) && samples == (end - begin) * task.pictures;
}

void append(const std::map<std::string, io::RewardColumn>& columns, std::size_t before, std::size_t count, std::map<std::string, io::RewardColumn>& all) {
    for (const auto& [name, column] : columns) {
        io::RewardColumn& to = all[name];
        to.score.resize(before), to.present.resize(before);  // shapes before that don't have it
        to.score.insert(to.score.end(), column.score.begin(), column.score.end());
        to.present.insert(to.present.end(), column.present.begin(), column.present.end());
    }
    for (auto& [name, column] : all) column.score.resize(before + count), column.present.resize(before + count);
}

ShardScores scores_of(const io::TrajectoryShard& shard) {
    ShardScores scores;
    for (const io::TrajectorySamples& s : shard.shapes) {
        const std::size_t before = scores.sample.size();
        scores.sample.insert(scores.sample.end(), s.sample_id.begin(), s.sample_id.end());
        append(s.reward, before, s.sample_id.size(), scores.reward);
        append(s.truth, before, s.sample_id.size(), scores.truth);
    }
    scores.absent = absent_samples(shard);
    return scores;
}

nlohmann::json to_json(const std::map<std::string, io::RewardColumn>& columns) {
    nlohmann::json json = nlohmann::json::object();
    for (const auto& [name, column] : columns) json[name] = {column.score, column.present};
    return json;
}

std::map<std::string, io::RewardColumn> columns_from(const nlohmann::json& json) {
    std::map<std::string, io::RewardColumn> columns;
    for (const auto& [name, column] : json.items()) column.at(0).get_to(columns[name].score), column.at(1).get_to(columns[name].present);
    return columns;
}

void append(io::TrajectoryPrompts& all, io::TrajectoryPrompts one) {
    for (io::ReferenceImage& image : one.images) {
        image.prompt = static_cast<std::uint32_t>(all.id.size());
        all.images.push_back(std::move(image));
    }
    const auto move = [](std::vector<std::string>& from, std::vector<std::string>& to) {
        std::move(from.begin(), from.end(), std::back_inserter(to));
    };
    move(one.id, all.id);
    move(one.text, all.text);
    move(one.negative, all.negative);
    move(one.category, all.category);
    move(one.task, all.task);
    move(one.attributes, all.attributes);
}

}  // namespace

std::vector<std::string> evaluation_inputs(const Context& c, const EvaluatedTask& task, const std::map<std::string, io::FileDigest>& scorer) {
    nlohmann::json mine = nlohmann::json::array();
    for (std::size_t unit = 0; unit < evaluation_shard_count(task); ++unit) {
        if (!c.is_mine(unit)) continue;
        const auto [begin, end] = prompts_of(task, unit);
        mine.push_back(inputs_hash(scorer, std::span(task.prompts).subspan(begin, end - begin)));
    }
    const std::vector<nlohmann::json> all = gather_json(*c.world, mine);
    std::vector<std::string> hashes;
    for (std::size_t unit = 0; unit < evaluation_shard_count(task); ++unit) hashes.push_back(all.at(unit % all.size()).at(unit / all.size()));
    return hashes;
}

std::optional<ShardScores> find_evaluation_shard(const Context& c, const std::filesystem::path& directory, const EvaluatedTask& task,
                                                 const EvaluationUnit& unit) {
    const auto path = directory / GroupRollout::shard_name(unit.unit);
    if (!std::filesystem::exists(path)) return std::nullopt;
    const auto shard = io::read_trajectory(path, {}, io::TrajectoryParts::scores);
    if (!is_as_made(c, shard, task, unit)) {
        std::filesystem::remove(path);
        return std::nullopt;
    }
    ShardScores scores = scores_of(shard);
    scores.digest = io::digest_file(path);
    return scores;
}

std::optional<ShardScores> adopt_evaluation_shard(const Context& c, const std::filesystem::path& from, const std::filesystem::path& directory,
                                                  const EvaluatedTask& task, const EvaluationUnit& unit) {
    const auto name = GroupRollout::shard_name(unit.unit);
    if (!std::filesystem::exists(from / name)) return std::nullopt;
    // Linked before it is looked at: whoever owns the other directory may take it away.
    std::error_code error;
    std::filesystem::create_hard_link(from / name, directory / name, error);
    if (error) return std::nullopt;
    auto found = find_evaluation_shard(c, directory, task, unit);
    if (!found) return std::nullopt;
    if (found->absent > 0) {
        std::filesystem::remove(directory / name);
        return std::nullopt;
    }
    io::flush_file(directory);  // the name must be there before a manifest counts on it
    return found;
}

EvaluationShard draw_evaluation_shard(const Context& c, pipeline::Pipeline& model,
                                      const rl::SamplingSpec& spec, const EvaluatedTask& task,
                                      const EvaluationUnit& unit, const std::filesystem::path& directory,
                                      Scoring& scoring, Workspace& workspace) {
    EvaluationShard drawn{directory / GroupRollout::shard_name(unit.unit), unit.candidate, {}, {}};
    io::TrajectoryShard& shard = drawn.shard;
    shard.header = shard_header(c, "evaluate", spec, unit.model_hash);
    shard.header.sampler = flow::name_of(flow::Sampler::ode);
    shard.header.eta = 0;
    shard.header.iteration = 0;
    shard.header.guidance_scale = scale_of(c, unit);
    shard.header.inputs_hash = unit.inputs_hash;
    const auto [begin, end] = prompts_of(task, unit.unit);
    std::vector<Encoded> waiting;
    const auto draw_waiting = [&] {
        if (waiting.empty()) return;
        draw(model, c, unit.guided, task, waiting, workspace, samples_on(shard, waiting.front().spec, model.dit().config().in_channels));
        waiting.clear();
    };
    for (std::size_t i = begin; i < end; ++i) {
        append(shard.prompts, prompt_table(c, task.prompts[i]));
        Encoded next{i, on_grid(spec, model.schedule_config(), target_grid(c, task.prompts[i])), encode_pair(model, c, task.prompts[i], unit.guided)};
        if (waiting.size() == pipeline::prompts_together(c.config.integer("rollout.micro_batch"), static_cast<std::int64_t>(task.pictures), next.spec.target) ||
            (!waiting.empty() && !(waiting.back().spec.target == next.spec.target && waiting.back().pair.has_sizes_of(next.pair))))
            draw_waiting();
        waiting.push_back(std::move(next));
    }
    draw_waiting();
    for (io::TrajectorySamples& s : shard.shapes) {
        decode_pictures(model, s);
        std::vector<const Prompt*> asked;
        for (const std::uint32_t prompt : s.prompt) asked.push_back(&task.prompts[begin + prompt]);
        drawn.outcomes.push_back(scoring.submit(asked, s));
        scoring.add_truth(asked, s);
    }
    return drawn;
}

ShardScores publish_evaluation_shard(EvaluationShard drawn) {
    std::int64_t absent = 0, pictures = 0;
    for (std::size_t k = 0; k < drawn.shard.shapes.size(); ++k) {
        io::TrajectorySamples& s = drawn.shard.shapes[k];
        absent += store_outcomes(drawn.outcomes[k], s);
        pictures += s.samples();
        for (std::int64_t i = 0; i < s.samples(); ++i) {
            double sum = 0, n = 0;
            for (const auto& [name, column] : s.reward)
                if (column.present[static_cast<std::size_t>(i)] != 0)
                    sum += column.score[static_cast<std::size_t>(i)], ++n;
            s.total.push_back(static_cast<float>(sum / n));
            s.advantage.push_back(0.0f);
        }
    }
    std::filesystem::create_directories(drawn.path.parent_path());
    ShardScores scores = scores_of(drawn.shard);
    scores.digest = io::publish_file(drawn.path, [&](const std::filesystem::path& temporary) {
        io::write_trajectory(temporary, drawn.shard);
    });
    if (absent > 0)
        log_line(fmt::format("{} of {} held-out pictures of {} in {} could not be scored", absent, pictures, drawn.candidate, drawn.path.string()));
    return scores;
}

std::map<std::string, ShardScores> gather_scores(comm::Communicator& world, const std::map<std::string, ShardScores>& mine) {
    nlohmann::json shards = nlohmann::json::object();
    for (const auto& [name, s] : mine)
        shards[name] = {{"sample", s.sample}, {"reward", to_json(s.reward)}, {"truth", to_json(s.truth)}, {"absent", s.absent},
                        {"bytes", s.digest.size}, {"hash", s.digest.hash}};
    std::map<std::string, ShardScores> all;
    for (const nlohmann::json& part : gather_json(world, shards))
        for (const auto& [name, s] : part.items())
            all[name] = {s.at("sample"), columns_from(s.at("reward")), columns_from(s.at("truth")), s.at("absent"), {s.at("bytes"), s.at("hash")}};
    return all;
}

void take_scores(const ShardScores& shard, std::vector<EvaluatedSample>& samples) {
    for (std::size_t k = 0; k < shard.sample.size(); ++k) {
        EvaluatedSample& sample = samples.at(shard.sample[k]);
        for (const auto& [name, column] : shard.reward)
            if (column.present[k] != 0) sample.scores[name] = column.score[k];
        for (const auto& [name, column] : shard.truth)
            if (column.present[k] != 0) sample.truth[name] = column.score[k];
    }
}

void read_pictures(const Context& c, const std::filesystem::path& directory, const EvaluatedTask& task, const std::vector<std::size_t>& shown,
                   std::vector<EvaluatedSample>& samples) {
    std::set<std::size_t> units;
    for (const std::size_t prompt : shown) units.insert(prompt / evaluation_shard_prompts);
    for (const std::size_t unit : units) {
        const auto shard = io::read_trajectory(directory / GroupRollout::shard_name(unit), c.config.hash(), io::TrajectoryParts::summary);
        for (const io::TrajectorySamples& s : shard.shapes)
            for (std::size_t k = 0; k < s.sample_id.size(); ++k) {
                const std::size_t prompt = s.sample_id[k] / task.pictures;
                if (s.sample_id[k] % task.pictures != 0 || !std::ranges::binary_search(shown, prompt)) continue;
                const std::size_t bytes = s.picture.size() / s.sample_id.size();
                io::Image& picture = samples.at(s.sample_id[k]).picture;
                picture = io::Image(static_cast<int>(s.picture_width), static_cast<int>(s.picture_height), 4);
                std::copy_n(s.picture.begin() + static_cast<std::ptrdiff_t>(k * bytes), bytes, picture.pixels.begin());
            }
    }
}

}  // namespace atelier::stage
