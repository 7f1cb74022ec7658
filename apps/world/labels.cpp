#include "labels.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "core/error.hpp"
#include "io/publish.hpp"
#include "io/trajectory.hpp"
#include "judge/labels.hpp"
#include "world/draw.hpp"
#include "world/flaws.hpp"
#include "world/shown.hpp"

namespace atelier {
namespace {

namespace fs = std::filesystem;
using Pixels = std::vector<std::uint8_t>;

constexpr std::array<std::string_view, 4> t2i_categories{"general", "portrait", "landscape", "typography"};
constexpr std::array<std::string_view, 2> edit_categories{"general", "portrait"};

std::shared_ptr<const judge::LabelledPicture> image_of(world::Picture rgba) {
    io::Image image(world::side, world::side, 3);
    for (std::size_t i = 0; i < rgba.size() / 4; ++i)
        std::copy_n(rgba.begin() + static_cast<std::ptrdiff_t>(4 * i), 3, image.pixels.begin() + static_cast<std::ptrdiff_t>(3 * i));
    return std::make_shared<const judge::LabelledPicture>(std::move(image));
}

bool names_second_first(const std::string& prompt) { return prompt.find(" right of ") != prompt.npos || prompt.find(" below ") != prompt.npos; }

/// Labels of a seed, one picture after another.
class Labeller {
  public:
    explicit Labeller(const LabelPlan& plan) : plan_(plan) {}

    /// `shown`: the scene that is there, whatever was asked.
    void add(const std::string& id, const std::string& kind, const std::string& category, const std::string& prompt, const nlohmann::json& attributes,
             const world::Scene& shown, world::Picture picture, const std::vector<std::shared_ptr<const judge::LabelledPicture>>& sources) {
        const auto image = image_of(picture);
        const std::uint64_t image_number = pictures_++;
        Random random(random_key(plan_.seed, RandomUse::world, 3, image_number));
        for (const auto& [dimension, measured] : world::measure(attributes, picture)) {
            // Of those that a dimension does not apply to a few are enough to say so.
            if (!measured.present && image_number % 8 != 0) continue;
            judge::LabelledSample s{id, kind, dimension, category, prompt, measured.reason, image, sources, {}};
            // What is asked for is judged by what is seen, said first and in the order that the prompt has.
            if (dimension == "alignment" || dimension == "instruction")
                s.rationale = fmt::format("{}; {}", world::caption(shown, names_second_first(prompt)), measured.reason);
            const double none = std::numeric_limits<double>::quiet_NaN();
            if (plan_.annotators == 0) s.scores.emplace_back("truth", measured.present ? measured.score : none);
            for (int a = 0; a < plan_.annotators; ++a) {
                if (!measured.present) {
                    s.scores.emplace_back(annotator(a), none);
                    continue;
                }
                Random habit(random_key(plan_.seed, RandomUse::world, 4, static_cast<std::uint64_t>(a)));
                const double seen = measured.score + bias * habit.normal() + noise * random.normal();
                s.scores.emplace_back(annotator(a), std::clamp(std::round(2 * seen) / 2, 1.0, 5.0));
            }
            samples_.push_back(std::move(s));
        }
    }
    const std::vector<judge::LabelledSample>& samples() const { return samples_; }

  private:
    static std::string annotator(int a) { return fmt::format("annotator-{}", a + 1); }
    static constexpr double bias = 0.15, noise = 0.4;  // levels of the scale
    const LabelPlan& plan_;
    std::uint64_t pictures_ = 0;
    std::vector<judge::LabelledSample> samples_;
};

Pixels maybe_spoilt(Pixels picture, double share, Random& random) {
    while (random.uniform() < share) {
        const double u = random.uniform();  // light flaws more often than heavy ones
        picture = world::spoil(picture, static_cast<world::Flaw>(random.below(world::flaw_count)), u * u, random);
        share *= 0.5;
    }
    return picture;
}

void add_drawn_t2i(std::uint64_t i, std::uint64_t seed, Labeller& labels) {
    Random random(random_key(seed, RandomUse::world, 1, i));
    const auto category = t2i_categories[i % t2i_categories.size()];
    const world::Scene asked = world::random_scene(category, random);
    const std::string prompt = world::caption(asked, random);
    world::Scene shown = asked;
    const double u = random.uniform();
    if (u > 0.92)
        shown = world::random_scene(category, random);
    else
        for (double limit : {0.45, 0.75})
            if (u > limit) shown = world::near_miss(shown, random);
    Pixels picture = maybe_spoilt(world::draw(shown), 0.75, random);
    if (random.below(3) == 0) picture = world::spoil(picture, world::Flaw::grainy, random.uniform(), random);
    if (category == "portrait" && random.below(2) == 0) picture = world::spoil(picture, world::Flaw::smeared, random.uniform(), random);
    labels.add(fmt::format("drawn-t2i-{:05}", i), "t2i", std::string(category), prompt, to_json(asked), shown, picture, {});
}

void add_drawn_edit(std::uint64_t i, std::uint64_t seed, Labeller& labels) {
    Random random(random_key(seed, RandomUse::world, 2, i));
    const auto category = edit_categories[i % edit_categories.size()];
    const world::Edit edit = world::random_edit(category, random);
    const Pixels before = world::draw(edit.source), after = world::draw(edit.result);
    Pixels picture = after;
    world::Scene shown = edit.result;
    const auto show = [&](world::Scene scene) {
        shown = std::move(scene);
        return world::draw(shown);
    };
    const auto blend = [&](const world::Scene& from, world::Picture drawn_from, const world::Scene& to, world::Picture drawn_to, double share) {
        shown = share < 0.5 ? from : to;
        return world::blend(drawn_from, drawn_to, share);
    };
    const double u = random.uniform();
    if (u < 0.08) {
        shown = edit.source;
        picture = before;
    } else if (u < 0.32) {
        picture = blend(edit.source, before, edit.result, after, 0.3 + 0.7 * random.uniform());
    } else if (u < 0.40) {
        picture = show(world::near_miss(random.below(3) == 0 ? edit.source : edit.result, random));
    } else if (u < 0.50) {
        const world::Scene missed = world::near_miss(edit.result, random);
        picture = blend(edit.result, after, missed, world::draw(missed), 0.7 * random.uniform());
    } else if (u < 0.80 && category == "portrait") {
        picture = show(world::other_person(random.below(3) == 0 ? edit.source : edit.result, random.uniform(), random));
    } else if (u < 0.84) {
        picture = show(world::random_edit(category, random).result);
    }
    picture = maybe_spoilt(std::move(picture), 0.6, random);
    labels.add(fmt::format("drawn-edit-{:05}", i), "edit", std::string(category), edit.instruction, to_json(edit), shown, picture, {image_of(before)});
}

/// What a model's picture shows, looked for from what was asked (of an edit from both its pictures).
world::Scene shown_by(world::Picture picture, const nlohmann::json& attributes) {
    if (!attributes.contains("edit")) return world::scene_shown(picture, world::scene_from_json(attributes));
    const world::Edit edit = world::edit_from_json(attributes);
    const world::Scene from_source = world::scene_shown(picture, edit.source), from_result = world::scene_shown(picture, edit.result);
    const bool source = world::measure_alignment(picture, from_source).score > world::measure_alignment(picture, from_result).score;
    return source ? from_source : from_result;
}

void add_samples(const fs::path& directory, Labeller& labels) {
    std::vector<fs::path> shards;
    ATELIER_CHECK_INPUT(fs::is_directory(directory), "{} is no directory of shards", directory.string());
    for (const auto& entry : fs::directory_iterator(directory))
        if (entry.path().filename().string().starts_with("shard-")) shards.push_back(entry.path());
    std::sort(shards.begin(), shards.end());
    ATELIER_CHECK_INPUT(!shards.empty(), "{} holds no shard", directory.string());
    for (const fs::path& file : shards) {
        const auto shard = io::read_trajectory(file);
        std::vector<std::vector<std::shared_ptr<const judge::LabelledPicture>>> sources(shard.prompts.id.size());
        for (const io::ReferenceImage& reference : shard.prompts.images) sources.at(reference.prompt).push_back(image_of(reference.rgba));
        for (const io::TrajectorySamples& s : shard.shapes) {
            const std::size_t bytes = s.picture.size() / static_cast<std::size_t>(s.samples());
            for (std::size_t m = 0; m < static_cast<std::size_t>(s.samples()); ++m) {
                const std::uint32_t p = s.prompt[m];
                const auto rgba = std::span(s.picture).subspan(m * bytes, bytes);
                const auto attributes = nlohmann::json::parse(shard.prompts.attributes[p]);
                labels.add(fmt::format("{}-{}-{}-{}", shard.header.run_id, shard.prompts.task[p], shard.prompts.id[p], s.member[m]),
                           sources[p].empty() ? "t2i" : "edit", shard.prompts.category[p], shard.prompts.text[p], attributes,
                           shown_by(rgba, attributes), rgba, sources[p]);
            }
        }
    }
}

}  // namespace

void write_world_labels(const LabelPlan& plan, const fs::path& file) {
    Labeller labels(plan);
    for (std::uint64_t i = 0; i < plan.t2i; ++i) add_drawn_t2i(i, plan.seed, labels);
    for (std::uint64_t i = 0; i < plan.edit; ++i) add_drawn_edit(i, plan.seed, labels);
    for (const fs::path& directory : plan.samples) add_samples(directory, labels);
    ATELIER_CHECK_USAGE(!labels.samples().empty(), "nothing to label: give --count or --samples");
    io::publish_file(file, [&](const fs::path& temporary) { judge::write_labels(temporary, labels.samples()); });
    fmt::print("{} labels of {}\n", labels.samples().size(), file.string());
}

}  // namespace atelier
