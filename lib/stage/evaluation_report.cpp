#include "stage/evaluation_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "eval/bootstrap.hpp"
#include "eval/bradley_terry.hpp"
#include "io/image/contact_sheet.hpp"
#include "io/image/png.hpp"
#include "model/processor/resize.hpp"

namespace atelier::stage {
namespace {

using Json = nlohmann::json;

struct Column {
    std::vector<double> values;
    std::vector<std::uint64_t> clusters;
    void add(double value, std::uint64_t cluster) {
        values.push_back(value);
        clusters.push_back(cluster);
    }
};

void add_scores(const EvaluatedTask& task, const std::string& name,
                const std::vector<EvaluatedSample>& samples,
                std::map<std::string, Column>& columns) {
    for (std::size_t i = 0; i < samples.size(); ++i) {
        const Prompt& prompt = task.prompts[i / task.pictures];
        for (const auto& [dimension, score] : samples[i].scores) {
            columns[name + "/" + dimension].add(score, prompt.number);
            columns[name + "/" + dimension + "/" + prompt.category].add(score, prompt.number);
        }
        if (const auto total = samples[i].total()) columns[name + "/total"].add(*total, prompt.number);
    }
}

/// Means over the dimensions that both have, where there are any: one without a face is not better for it.
std::optional<std::pair<double, double>> comparable_totals(const EvaluatedSample& a, const EvaluatedSample& b) {
    double x = 0, y = 0, n = 0;
    for (const auto& [dimension, score] : a.scores)
        if (const auto found = b.scores.find(dimension); found != b.scores.end()) x += score, y += found->second, ++n;
    if (n == 0) return std::nullopt;
    return std::pair{x / n, y / n};
}

Json to_json(const eval::Interval& i) {
    return {{"mean", i.mean}, {"low", i.low}, {"high", i.high}, {"n", i.n}};
}

/// Differences to the first model, prompt by prompt and seed by seed: far narrower than the means'
/// own intervals, because most of their width is how prompts differ. Dimensions count where both
/// have a score, in the total as well.
Json gains(const std::vector<std::string>& models,
           const std::map<std::string, EvaluatedTask>& tasks) {
    Json json = Json::object();
    for (std::size_t m = 1; m < models.size(); ++m) {
        std::map<std::string, std::pair<Column, Column>> columns;
        for (const auto& [name, task] : tasks)
            for (std::size_t i = 0; i < task.models[m].size(); ++i) {
                const auto &before = task.models[0][i], &after = task.models[m][i];
                const std::uint64_t cluster = task.prompts[i / task.pictures].number;
                const auto add = [&, &name = name](const std::string& dimension, double x, double y) {
                    auto& [first, second] = columns[name + "/" + dimension];
                    first.add(x, cluster);
                    second.add(y, cluster);
                };
                for (const auto& [dimension, score] : before.scores)
                    if (const auto found = after.scores.find(dimension);
                        found != after.scores.end())
                        add(dimension, score, found->second);
                if (const auto totals = comparable_totals(before, after)) add("total", totals->first, totals->second);
            }
        json[models[m]] = Json::object();
        for (const auto& [name, pair] : columns)
            json[models[m]][name] = to_json(eval::bootstrap_difference(
                {}, pair.first.values, pair.second.values, pair.first.clusters));
    }
    return json;
}

void add_elo(const std::vector<std::string>& models,
             const std::map<std::string, EvaluatedTask>& tasks, Json& summary) {
    std::vector<eval::Outcome> outcomes;
    for (const auto& [name, task] : tasks)
        for (std::size_t i = 0; i < task.prompts.size() * task.pictures; ++i)
            for (std::size_t a = 0; a < models.size(); ++a)
                for (std::size_t b = a + 1; b < models.size(); ++b) {
                    const auto totals = comparable_totals(task.models[a][i], task.models[b][i]);
                    if (!totals) continue;
                    const auto [x, y] = *totals;
                    outcomes.push_back(
                        {static_cast<int>(a), static_cast<int>(b),
                         x > y   ? 1.0
                         : x < y ? 0.0
                                 : 0.5,
                         task_number(name) ^ task.prompts[i / task.pictures].number});
                }
    Json& json = summary["elo"] = Json::object();
    if (outcomes.empty()) return;
    const auto table = eval::elo_table({}, static_cast<int>(models.size()), outcomes);
    for (std::size_t m = 0; m < models.size(); ++m)
        json[models[m]] = {{"elo", table.entries[m].elo},
                           {"low", table.entries[m].low},
                           {"high", table.entries[m].high}};
    summary["elo_regularised"] = table.regularised;
}

/// A picture that is larger than a cell is made to fit in, with its aspect.
void shrink_to_cell(io::Image& picture, const std::array<int, 2>& cell) {
    const double scale = std::min(static_cast<double>(cell[0]) / picture.width, static_cast<double>(cell[1]) / picture.height);
    if (scale >= 1) return;
    const auto side = [&](int pixels, int most) { return std::clamp(static_cast<int>(std::lround(scale * pixels)), 1, most); };
    picture = model::resize(picture, side(picture.width, cell[0]), side(picture.height, cell[1]), model::ResizeFilter::lanczos,
                            model::PassOrder::pillow_13);
}

}  // namespace

std::optional<double> EvaluatedSample::total() const {
    if (scores.empty()) return std::nullopt;
    double sum = 0;
    for (const auto& [name, score] : scores) sum += score;
    return sum / static_cast<double>(scores.size());
}

Json evaluation_summary(const std::vector<std::string>& models,
                        const std::map<std::string, EvaluatedTask>& tasks) {
    Json summary{{"models", Json::object()}, {"gain", gains(models, tasks)}};
    add_elo(models, tasks, summary);
    for (std::size_t m = 0; m < models.size(); ++m) {
        std::map<std::string, Column> columns;
        for (const auto& [name, task] : tasks) add_scores(task, name, task.models[m], columns);
        Json& entry = summary["models"][models[m]] = Json::object();
        for (const auto& [name, column] : columns) {
            entry[name] = to_json(eval::bootstrap_mean({}, column.values, column.clusters));
        }
        for (const auto& [name, task] : tasks)
            if (const auto count = std::ranges::count_if(task.models[m], [](const EvaluatedSample& s) { return !s.total(); }); count > 0)
                summary["without_score"][models[m]][name] = count;
    }
    return summary;
}

Json truth_summary(const std::vector<std::string>& models,
                   const std::map<std::string, EvaluatedTask>& tasks) {
    std::map<std::string, EvaluatedTask> measured;
    bool any = false;
    for (const auto& [name, task] : tasks) {
        EvaluatedTask& copy = measured[name];
        copy.prompts = task.prompts;
        copy.pictures = task.pictures;
        for (const auto& samples : task.models) {
            auto& to = copy.models.emplace_back();
            for (const EvaluatedSample& s : samples) {
                to.push_back({{}, s.truth, {}});
                any = any || !s.truth.empty();
            }
        }
    }
    return any ? evaluation_summary(models, measured) : Json();
}

std::string evaluation_table(const Json& summary, const std::vector<std::string>& models) {
    std::set<std::string> names;
    for (const auto& [model, entry] : summary["models"].items())
        for (const auto& [name, value] : entry.items())
            if (std::count(name.begin(), name.end(), '/') == 1) names.insert(name);
    std::string text = fmt::format("{:<18}", "");
    for (const std::string& model : models) text += fmt::format("{:>22}", model);
    const auto add_rows = [&](const Json& of_models, const char* form) {
        for (const std::string& name : names) {
            text += fmt::format("\n{:<18}", name);
            for (const std::string& model : models) {
                const auto entry = of_models.find(model);
                if (entry == of_models.end() || !entry->contains(name)) {
                    text += fmt::format("{:>22}", "");
                    continue;
                }
                const Json& v = (*entry)[name];
                text += fmt::format("{:>22}",
                                    fmt::format(fmt::runtime(form), v["mean"].get<double>(),
                                                v["low"].get<double>(), v["high"].get<double>()));
            }
        }
    };
    add_rows(summary["models"], "{:.2f} [{:.2f}, {:.2f}]");
    if (models.size() > 1) {
        text += fmt::format("\n\ngain over {} (same prompts and seeds)", models[0]);
        add_rows(summary["gain"], "{:+.2f} [{:+.2f}, {:+.2f}]");
        text += '\n';
    }
    if (!summary["elo"].empty()) {
        text += fmt::format("\n{:<18}", "Elo");
        for (const std::string& model : models) {
            const Json& v = summary["elo"][model];
            text +=
                fmt::format("{:>22}", fmt::format("{:.0f} [{:.0f}, {:.0f}]", v["elo"].get<double>(),
                                                  v["low"].get<double>(), v["high"].get<double>()));
        }
    }
    text += '\n';
    if (summary.value("elo_regularised", false))
        text += "\nElo: half a win each way was added to every pair of models, because some never lost to the others\n";
    if (const auto missing = summary.find("without_score"); missing != summary.end())
        for (const auto& [model, tasks] : missing->items())
            for (const auto& [task, count] : tasks.items())
                text += fmt::format("\n{} pictures of {} for {} have no score and are left out\n", count.get<std::int64_t>(), model, task);
    return text;
}

std::vector<std::size_t> shown_prompts(const EvaluatedTask& task) {
    // Categories take turns in a prompt file: the offset moves on, so that the sheet shows all of
    // them.
    const std::size_t step = std::max<std::size_t>(1, task.prompts.size() / sheet_rows);
    std::vector<std::size_t> shown;
    for (std::size_t row = 0; row < sheet_rows && row * step + row % step < task.prompts.size();
         ++row)
        shown.push_back(row * step + row % step);
    return shown;
}

void write_contact_sheet(const std::filesystem::path& path, const std::vector<std::string>& models,
                         EvaluatedTask& task) {
    const bool has_references = std::any_of(task.prompts.begin(), task.prompts.end(),
                                            [](const Prompt& p) { return !p.images.empty(); });
    io::ContactSheet sheet;
    if (has_references) sheet.column_captions.push_back("reference");
    sheet.column_captions.insert(sheet.column_captions.end(), models.begin(), models.end());
    const auto shown = shown_prompts(task);
    std::array<int, 2> largest{0, 0};  // width and height of the models' pictures
    for (const std::size_t i : shown) {
        sheet.rows.emplace_back();
        if (has_references) sheet.rows.back().push_back(nullptr);
        for (const auto& samples : task.models) {
            const io::Image& picture = samples[i * task.pictures].picture;
            largest = {std::max(largest[0], picture.width), std::max(largest[1], picture.height)};
            sheet.rows.back().push_back(&picture);
        }
        sheet.row_captions.push_back(task.prompts[i].text);
    }
    const std::array<int, 2> limit = io::largest_cell(sheet, io::max_png_side), cell{std::min(limit[0], largest[0]), std::min(limit[1], largest[1])};
    std::vector<io::Image> references;
    references.reserve(shown.size());
    for (std::size_t row = 0; row < shown.size(); ++row) {
        for (auto& samples : task.models) shrink_to_cell(samples[shown[row] * task.pictures].picture, cell);
        const auto& images = task.prompts[shown[row]].images;
        if (images.empty()) continue;
        // As large as it was in its file one at a time.
        shrink_to_cell(references.emplace_back(io::read_png(images[0])), cell);
        sheet.rows[row][0] = &references.back();
    }
    io::write_png(path, io::contact_sheet(sheet));
}

}  // namespace atelier::stage
