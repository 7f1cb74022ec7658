#include "stage/scoring.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <set>

#include "core/device_turn.hpp"
#include "core/progress.hpp"
#include "io/image/png.hpp"
#include "model/processor/image_inputs.hpp"
#include "model/processor/resize.hpp"
#include "reward/judge_ranks.hpp"
#include "rl/reward_total.hpp"
#include "stage/scorers.hpp"

namespace atelier::stage {

namespace {

/// Who waits for a judge must leave it the device.
void check_no_turn() { ATELIER_CHECK(!DeviceTurn::is_mine(), "verdicts are waited for in a turn of the device"); }

/// One row more; a score that is absent is no number.
void append(const std::string& name, const reward::Verdict& verdict, double seconds,
            std::map<std::string, io::RewardColumn>& columns) {
    io::RewardColumn& column = columns[name];
    column.score.push_back(verdict.present ? static_cast<float>(verdict.score)
                                           : std::numeric_limits<float>::quiet_NaN());
    column.present.push_back(verdict.present ? 1 : 0);
    column.seconds.push_back(static_cast<float>(seconds));
    column.reason.push_back(verdict.reason);
}

}  // namespace

io::Image shown_source(io::Image source, std::int64_t output_resolution) {
    const model::PictureSize seen = model::reference_size({source.width, source.height}, output_resolution);
    if (std::int64_t{source.width} * source.height <= seen.width * seen.height) return source;
    return model::resize(model::with_alpha(source), static_cast<int>(seen.width), static_cast<int>(seen.height), model::ResizeFilter::lanczos,
                         model::PassOrder::pillow_13);
}

void show_sources(std::span<judge::LabelledSample> labels, std::int64_t output_resolution) {
    std::map<const judge::LabelledPicture*, std::shared_ptr<const judge::LabelledPicture>> shown;
    for (judge::LabelledSample& sample : labels)
        for (auto& source : sample.sources) {
            const auto [place, is_new] = shown.try_emplace(source.get(), source);
            const model::PictureSize seen = model::reference_size({source->width(), source->height()}, output_resolution);
            if (is_new && std::int64_t{source->width()} * source->height() > seen.width * seen.height) {
                const auto load = [whole = source, output_resolution] { return shown_source(whole->load(), output_resolution); };
                const io::Image size(static_cast<int>(seen.width), static_cast<int>(seen.height), 4);
                place->second = source->is_kept() ? std::make_shared<const judge::LabelledPicture>(load())
                                                  : std::make_shared<const judge::LabelledPicture>(size, load);
            }
            source = place->second;
        }
}

reward::PoolConfig pool_config(const config::Config& config) {
    return {static_cast<int>(config.integer("reward.workers")),
            static_cast<int>(config.integer("reward.queue")),
            static_cast<int>(config.integer("reward.retries"))};
}

Scoring::Scoring(const Context& c) : context_(c), truth_(make_truth(c.config)), judging_(c.judges) {
    for (const std::string& task : c.config.tasks()) tiers_[c.kind(task)] = dimension_tiers(c.config, c.kind(task));
    if (c.judges != nullptr) {
        c.judges->open();
        return;
    }
    scorer_ = make_scorer(c);
    pool_ = std::make_unique<reward::Pool>(*scorer_, pool_config(c.config));
    judging_ = pool_.get();
}

ScoringMemory Scoring::memory(std::size_t picture_bytes) const {
    if (!scorer_) return {capacity(), {}, true};
    const auto workers = static_cast<std::size_t>(context_.config.integer("reward.workers"));
    return {capacity(), scorer_->bytes(workers, picture_bytes), false};
}

const std::vector<std::string>& Scoring::dimensions(const std::string& kind) const {
    return scorer_ ? scorer_->dimensions(kind) : context_.judges->dimensions(kind);
}

std::vector<std::future<reward::Outcome>> Scoring::submit(
    const std::vector<const Prompt*>& prompts, const io::TrajectorySamples& s) {
    check_no_turn();
    std::vector<std::future<reward::Outcome>> futures;
    std::shared_ptr<const std::vector<io::Image>> sources;
    const auto n = static_cast<std::size_t>(s.samples()), bytes = s.picture.size() / n;
    for (std::size_t m = 0; m < n; ++m) {
        const Prompt& prompt = *prompts.at(m);
        if (m == 0 || prompts[m] != prompts[m - 1]) {
            auto images = std::make_shared<std::vector<io::Image>>();
            for (const auto& path : prompt.images)
                images->push_back(shown_source(io::read_png(path), context_.config.integer("sampling.output_resolution")));
            sources = std::move(images);
        }
        reward::Request request{s.sample_id[m],
                                context_.kind(prompt.task),
                                prompt.attributes,
                                s.picture_height,
                                s.picture_width,
                                {},
                                prompt.text,
                                sources,
                                {s.noise_key[2 * m], s.noise_key[2 * m + 1]}};
        request.picture.assign(s.picture.begin() + static_cast<std::ptrdiff_t>(m * bytes),
                               s.picture.begin() + static_cast<std::ptrdiff_t>((m + 1) * bytes));
        futures.push_back(judging_->submit(std::move(request)));
    }
    return futures;
}

void Scoring::add_truth(const std::vector<const Prompt*>& prompts,
                        io::TrajectorySamples& s) const {
    if (!truth_) return;
    const auto n = static_cast<std::size_t>(s.samples()), bytes = s.picture.size() / n;
    for (std::size_t m = 0; m < n; ++m) {
        const Prompt& prompt = *prompts.at(m);
        reward::Request request;
        request.sample_id = s.sample_id[m];
        request.kind = context_.kind(prompt.task);
        request.attributes = prompt.attributes;
        request.height = s.picture_height;
        request.width = s.picture_width;
        request.picture.assign(s.picture.begin() + static_cast<std::ptrdiff_t>(m * bytes),
                               s.picture.begin() + static_cast<std::ptrdiff_t>((m + 1) * bytes));
        for (const auto& [name, verdict] : truth_->score(request, 0)) append(name, verdict, 0, s.truth);
    }
}

int store_outcomes(std::vector<std::future<reward::Outcome>>& outcomes, io::TrajectorySamples& s,
                   Timeline* timeline, std::int64_t group) {
    check_no_turn();
    int absent = 0;
    for (std::size_t m = 0; m < outcomes.size(); ++m) {
        const reward::Outcome outcome = outcomes[m].get();
        if (timeline != nullptr)
            timeline->add({"judging", outcome.rank, outcome.worker, outcome.begin, outcome.seconds,
                           group, static_cast<std::int64_t>(s.sample_id[m])});
        if (outcome.failed) {
            s.status[m] = static_cast<std::uint8_t>(io::SampleStatus::reward_absent);
            if (absent++ == 0)  // of each group the first is enough
                log_line(fmt::format("sample {} has no score: {}", s.sample_id[m],
                                     outcome.verdicts.begin()->second.reason));
        }
        for (const auto& [name, verdict] : outcome.verdicts)
            append(name, verdict, outcome.seconds / static_cast<double>(outcome.verdicts.size()),
                   s.reward);
    }
    return absent;
}

std::int64_t absent_samples(const io::TrajectoryShard& shard) {
    std::int64_t absent = 0;
    for (const io::TrajectorySamples& s : shard.shapes)
        absent += std::ranges::count(s.status, static_cast<std::uint8_t>(io::SampleStatus::reward_absent));
    return absent;
}

GroupScores gated_scores(const io::TrajectorySamples& s, const std::vector<std::string>& dimensions,
                         double gate, const Tiers& tiers) {
    GroupScores group;
    for (const std::string& name : dimensions) {
        const auto column = s.reward.find(name);
        if (column != s.reward.end() && std::count(column->second.present.begin(),
                                                   column->second.present.end(), 0) < s.samples())
            group.dimensions.push_back(name);
    }
    const auto n = static_cast<std::size_t>(s.samples()), k = group.dimensions.size();
    group.scores.resize(n * k);
    group.present.resize(n * k);
    for (std::size_t d = 0; d < k; ++d) {
        const io::RewardColumn& column = s.reward.at(group.dimensions[d]);
        for (std::size_t m = 0; m < n; ++m) {
            group.scores[m * k + d] = column.score[m];
            group.present[m * k + d] = column.present[m];
        }
    }
    if (gate <= 0) return group;
    std::vector<std::int64_t> own(k);
    for (std::size_t d = 0; d < k; ++d) own[d] = tiers.at(group.dimensions[d]);
    for (std::size_t m = 0; m < n; ++m)
        rl::gate_tiers({gate, std::nullopt}, own, std::span(group.present).subspan(m * k, k),
                       std::span(group.scores).subspan(m * k, k));
    return group;
}

void set_advantages(const GroupScores& g, const std::map<std::string, double>& named,
                    double min_spread, io::TrajectorySamples& s) {
    const auto n = static_cast<std::size_t>(s.samples()), k = g.dimensions.size();
    const auto drop = [&] {
        for (std::uint8_t& status : s.status)
            if (status == static_cast<std::uint8_t>(io::SampleStatus::complete))
                status = static_cast<std::uint8_t>(io::SampleStatus::group_dropped);
    };
    s.total.assign(n, std::numeric_limits<float>::quiet_NaN());
    s.advantage.assign(n, 0.0f);
    if (k == 0) return drop();
    std::vector<double> weights(k, 1.0);
    for (std::size_t d = 0; d < k; ++d)
        if (const auto found = named.find(g.dimensions[d]); found != named.end())
            weights[d] = found->second;
    for (std::size_t m = 0; m < n; ++m)
        if (const auto total = rl::weighted_total(std::span(g.scores).subspan(m * k, k),
                                                  std::span(g.present).subspan(m * k, k), weights))
            s.total[m] = static_cast<float>(*total);
    if (std::ranges::all_of(weights, [](double weight) { return weight == 0; })) return drop();
    rl::AdvantageConfig config;
    config.min_spread = std::max(min_spread, config.min_spread);
    const auto group = rl::group_advantage(config, static_cast<int>(n), g.scores, g.present, weights);
    if (group.dropped) return drop();
    for (std::size_t m = 0; m < n; ++m) s.advantage[m] = static_cast<float>(group.advantage[m]);
}

namespace {

/// Entries "category/dimension=number" of a list.
CategoryWeights entries_of(const Context& c, const std::string& task, const char* key) {
    CategoryWeights weights;
    for (const std::string& entry : c.config.list("task." + task + "." + key)) {
        const auto slash = entry.find('/'), equals = entry.find('=');
        const char* const end = entry.data() + entry.size();
        double weight = -1;
        const bool is_number = equals != std::string::npos && std::from_chars(entry.data() + equals + 1, end, weight).ptr == end;
        ATELIER_CHECK_USAGE(is_number && slash < equals && std::isfinite(weight) && weight >= 0,
                            "task.{}.{}: \"{}\" is not category/dimension=number, the number finite and at least 0", task, key, entry);
        const auto [place, is_new] = weights[entry.substr(0, slash)].emplace(entry.substr(slash + 1, equals - slash - 1), weight);
        ATELIER_CHECK_USAGE(is_new, "task.{}.{}: \"{}\": {} of {} stands twice", task, key, entry, place->first, entry.substr(0, slash));
    }
    return weights;
}

}  // namespace

CategoryWeights pinned_weights(const Context& c, const std::string& task) {
    return entries_of(c, task, "weights");
}

CategoryWeights asked_shares(const Context& c, const std::string& task) {
    return entries_of(c, task, "shares");
}

void check_weights(const Context& c, const std::string& task) {
    const std::pair<const char*, CategoryWeights> lists[] = {{"weights", pinned_weights(c, task)}, {"shares", asked_shares(c, task)}};
    if (lists[0].second.empty() && lists[1].second.empty()) return;
    const std::string& file = c.config.text("task." + task + ".train");
    const PromptPool prompts(file, task, c.kind(task));
    std::set<std::string> categories;
    for (std::size_t i = 0; i < prompts.size(); ++i) categories.insert(prompts.at(i).category);
    const std::vector<std::string> dimensions = scored_dimensions(c.config, c.kind(task));
    for (const auto& [key, list] : lists)
        for (const auto& [category, entries] : list)
            for (const auto& [dimension, number] : entries) {
                ATELIER_CHECK_USAGE(categories.contains(category), "task.{}.{}: \"{}/{}={}\": {} has no category {}, only {}", task, key,
                                    category, dimension, number, file, category, fmt::join(categories, ", "));
                ATELIER_CHECK_USAGE(std::ranges::find(dimensions, dimension) != dimensions.end(),
                                    "task.{}.{}: \"{}/{}={}\": {} prompts have no dimension {}, only {}", task, key, category, dimension, number,
                                    c.kind(task), dimension, fmt::join(dimensions, ", "));
            }
}

CategoryWeights category_weights(const Context& c, const std::string& task) {
    CategoryWeights weights;
    if (c.config.flag("curate.enabled")) weights = read_choice(c.run.curated(task)).weights;
    for (const auto& [category, entries] : pinned_weights(c, task))
        for (const auto& [dimension, weight] : entries) weights[category][dimension] = weight;
    return weights;
}

}  // namespace atelier::stage
