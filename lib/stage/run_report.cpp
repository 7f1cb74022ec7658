#include "stage/run_report.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <set>

#include "core/json.hpp"
#include "io/file_io.hpp"
#include "io/image/png.hpp"
#include "io/metrics.hpp"
#include "io/report/html.hpp"
#include "stage/schema.hpp"
#include "stage/shown_groups.hpp"

namespace atelier::stage {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using io::escape_html;

constexpr const char* style = R"(
body { font: 15px/1.45 system-ui, sans-serif; color: #222; margin: 0 auto; max-width: 1240px; padding: 1.5em; }
h1 { font-size: 1.5em; margin: 0; } h2 { margin: 1.8em 0 .5em; border-bottom: 1px solid #ddd; } h3 { margin: 1.2em 0 .3em; }
table { border-collapse: collapse; } td, th { padding: .15em .9em .15em 0; text-align: left; vertical-align: top; } th { font-weight: 600; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
pre { background: #f6f6f6; padding: .8em; overflow-x: auto; font-size: 12px; }
.plots, .groups { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 1em; } .plots svg { max-width: 100%; height: auto; }
figure { margin: 0; font-size: 12px; max-width: 200px; } figcaption { overflow-wrap: anywhere; }
.group { border: 1px solid #e4e4e4; border-radius: 4px; padding: .7em; } .pictures { display: flex; flex-wrap: wrap; gap: .7em; } .group p { margin: 0 0 .5em; max-width: 400px; }
.failed { color: #b00020; } .quiet { color: #666; } img.sheet { max-width: 100%; }
)";

std::string section(const std::string& title, const std::string& body) {
    return body.empty() ? "" : fmt::format("<h2>{}</h2>\n{}\n", escape_html(title), body);
}

std::string plots(const std::vector<std::string>& svgs) {
    return svgs.empty() ? "" : fmt::format("<div class=\"plots\">\n{}</div>\n", fmt::join(svgs, ""));
}

std::string duration(double seconds) {
    if (seconds < 120) return fmt::format("{:.0f} s", seconds);
    return seconds < 7200 ? fmt::format("{:.1f} min", seconds / 60) : fmt::format("{:.1f} h", seconds / 3600);
}

bool is_made(const JobState& state) { return state.made.has_value(); }

/// Jobs of a kind, in the pipeline's order.
std::vector<std::pair<std::string, std::vector<const JobState*>>> by_kind(const std::vector<JobState>& jobs) {
    std::vector<std::pair<std::string, std::vector<const JobState*>>> kinds;
    for (const JobState& state : jobs) {
        auto found = std::ranges::find(kinds, state.kind, &decltype(kinds)::value_type::first);
        if (found == kinds.end()) found = kinds.insert(kinds.end(), {state.kind, {}});
        found->second.push_back(&state);
    }
    return kinds;
}

/// Which jobs are complete, and how long they took.
std::string stages_table(const std::vector<JobState>& jobs) {
    std::string html = "<table><tr><th>stage</th><th class=\"n\">complete</th><th class=\"n\">time in all</th><th class=\"n\">median</th><th class=\"n\">longest</th>"
                       "<th class=\"n\">ranks</th></tr>\n";
    for (const auto& [kind, states] : by_kind(jobs)) {
        std::vector<double> seconds;
        double all = 0;
        int ranks = 0;
        for (const JobState* state : states)
            if (state->made) {
                seconds.push_back(state->made->ended - state->made->began);
                all += seconds.back();
                ranks = std::max(ranks, state->made->ranks);
            }
        std::ranges::sort(seconds);
        html += fmt::format("<tr><td>{}</td><td class=\"n\">{} of {}</td>", escape_html(kind), seconds.size(), states.size());
        html += seconds.empty() ? "</tr>\n"
                                : fmt::format("<td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>\n", duration(all),
                                              duration(seconds[seconds.size() / 2]), duration(seconds.back()), ranks);
    }
    return html + "</table>\n<p class=\"quiet\">Of a stage that was stopped and went on, the time since it last started.</p>\n";
}

std::string failures(const std::vector<JobState>& jobs) {
    std::string html;
    for (const JobState& state : jobs)
        if (!state.account.empty()) html += fmt::format("<h3 class=\"failed\">{}</h3>\n<pre>{}</pre>\n", escape_html(state.job.name), escape_html(state.account));
    return html;
}

std::string times_plot(const std::vector<JobState>& jobs) {
    io::SpanPlot plot{"when each stage ran", {}};
    for (const JobState& state : jobs)
        if (state.made) plot.bars.push_back({state.kind, state.job.name + " on " + state.made->host, state.made->began, state.made->ended});
    return plot.bars.empty() ? "" : plots({io::svg_of(plot)});
}

io::PlotLine line_of(const std::string& name, const std::vector<CurvePoint>& points) {
    io::PlotLine line{name, {}};
    for (const CurvePoint& p : points) line.points.push_back({static_cast<double>(p.step), p.value, p.low, p.high});
    return line;
}

/// The curves whose names begin with `heading`/, as lines of one plot.
std::string plot_under(const Curves& curves, const std::string& heading, const std::string& title, const std::string& x_label) {
    io::Plot plot{title, x_label, {}};
    for (const auto& [name, points] : curves)
        if (name.starts_with(heading + "/")) plot.lines.push_back(line_of(name.substr(heading.size() + 1), points));
    return plot.lines.empty() ? "" : io::svg_of(plot);
}

std::string plot_one(const Curves& curves, const std::string& name, const std::string& title, const std::string& x_label) {
    const auto found = curves.find(name);
    // What is off is 0 throughout.
    if (found == curves.end() || std::ranges::all_of(found->second, [](const CurvePoint& p) { return p.value == 0; })) return "";
    return io::svg_of(io::Plot{title, x_label, {line_of(title, found->second)}});
}

/// What `make` makes, or why it could not: a file that is damaged, or made anew while it is read, takes nothing else off the page.
template <typename Make>
std::string whatever_comes_of(const Make& make) {
    try {
        return make();
    } catch (const Error& e) {
        return fmt::format("<p class=\"failed\">{}</p>\n", escape_html(e.message()));
    } catch (const std::exception& e) {  // of JSON of another form, of directories that go away
        return fmt::format("<p class=\"failed\">{}</p>\n", escape_html(e.what()));
    }
}

/// Of every policy that is trained by reinforcement, then of the student.
std::string learning(const Context& c, const std::map<std::string, Curves>& all) {
    std::string html;
    std::vector<std::string> policies = c.config.tasks();
    policies.insert(policies.end(), {mix_policy, student_curves});
    std::erase_if(policies, [&](const std::string& policy) { return !all.contains(policy); });
    io::Plot totals{"reward of the samples", "iteration", {}};
    for (const std::string& policy : policies)
        if (const Curves& curves = all.at(policy); curves.contains("reward/total")) totals.lines.push_back(line_of(policy, curves.at("reward/total")));
    if (totals.lines.size() > 1) html += plots({io::svg_of(totals)});
    for (const std::string& policy : policies) {
        const Curves& curves = all.at(policy);
        std::vector<std::string> svgs;
        const auto add = [&](std::string svg) {
            if (!svg.empty()) svgs.push_back(std::move(svg));
        };
        if (policy == student_curves) {
            add(plot_one(curves, "distill/loss", "loss of each update", "update"));
            add(plot_under(curves, "distill_round", "mean loss of the round's last epoch", "update"));
            add(plot_one(curves, "distill/gradient_norm", "gradient norm", "update"));
        } else {
            add(plot_under(curves, "reward", "reward, by dimension", "iteration"));
            add(plot_under(curves, "spread", "spread within groups", "iteration"));
            add(plot_under(curves, "truth", "the truth", "iteration"));
            add(plot_under(curves, "judge_above_truth", "judge above truth", "iteration"));
            add(plot_one(curves, "update/gradient_norm", "gradient norm", "iteration"));
            add(plot_one(curves, "update/ratio_deviation", "mean deviation of the ratio from 1", "iteration"));
            add(plot_one(curves, "update/clip_share", "share of clipped gradients", "iteration"));
            add(plot_one(curves, "update/loss", "loss", "iteration"));
            add(plot_one(curves, "update/kl", "KL to the base", "iteration"));
            add(plot_one(curves, "update/groups_dropped", "groups without spread", "iteration"));
        }
        html += fmt::format("<h3>{}</h3>\n", escape_html(policy)) + plots(svgs);
    }
    return html;
}

std::string figure(const io::Image& picture, const std::string& caption) {
    return fmt::format("<figure><img width=\"{}\" height=\"{}\" alt=\"\" src=\"{}\"><figcaption>{}</figcaption></figure>\n", picture.width, picture.height,
                       io::png_data_url(picture), caption);
}

std::string sample_figure(const char* which, const ShownSample& sample) {
    std::string caption = fmt::format("<b>{}: {:.2f}</b>, advantage {:+.2f}", which, sample.total, sample.advantage);
    for (const auto& [name, said] : sample.scores)
        caption += fmt::format("<br><span title=\"{}\">{} {:.2f}</span>", escape_html(said.second), escape_html(name), said.first);
    return figure(sample.picture, caption);
}

std::string pictures_of(const RunDirectory& run, const JobState& rollout) {
    std::string groups;
    for (const ShownGroup& group : groups_to_show(run, rollout)) {
        std::string pictures;
        for (const io::Image& reference : group.references) pictures += figure(reference, "reference");
        groups += fmt::format("<div class=\"group\"><p>{} <span class=\"quiet\">{}</span></p><div class=\"pictures\">{}{}{}</div></div>\n", escape_html(group.text),
                              escape_html(group.category), pictures, sample_figure("best", group.best), sample_figure("worst", group.worst));
    }
    return groups.empty() ? "" : fmt::format("<h3>{}</h3>\n<div class=\"groups\">\n{}</div>\n", escape_html(rollout.job.name), groups);
}

/// Some groups of each policy's newest rollout that is complete.
std::string newest_pictures(const RunDirectory& run, const std::vector<JobState>& jobs) {
    std::string html;
    for (const auto& [kind, states] : by_kind(jobs)) {
        const auto newest = std::ranges::find_if(states.rbegin(), states.rend(), [](const JobState* s) { return s->job.stage == "rollout" && is_made(*s); });
        if (newest == states.rend()) continue;
        html += whatever_comes_of([&, rollout = *newest] { return pictures_of(run, *rollout); });
    }
    return html.empty() ? "" : "<p class=\"quiet\">The best and the worst sample of some prompts; a score's reason appears where it is pointed at.</p>\n" + html;
}

/// A row for each model that has the value; `key`: of its middle.
void add_rows(io::IntervalPlot& plot, const std::vector<std::string>& models, const char* key, const std::function<Json(const std::string&)>& value_of) {
    for (std::size_t m = 0; m < models.size(); ++m)
        if (const Json v = value_of(models[m]); !v.is_null()) plot.rows.push_back({models[m], v.at(key), v.at("low"), v.at("high"), m});
}

/// Models in the table's order: the base, teachers, mix, student, further ones.
std::vector<std::string> models_of(const Json& summary) {
    std::vector<std::string> models;
    for (const auto& [model, entries] : summary.at("models").items()) models.push_back(model);
    const auto place = [](const std::string& model) {
        return model == "base" ? 0 : model == "base-guided" ? 1 : model.starts_with("teacher-") ? 2 : model == "mix" ? 3 : model == "student" ? 4 : 5;
    };
    std::ranges::stable_sort(models, {}, place);
    return models;
}

/// One evaluation's directory, as it lies beside report/.
std::string evaluation(const fs::path& directory) {
    const Json summary = read_json(directory / "summary.json");
    const auto models = models_of(summary);
    std::set<std::string> totals;
    for (const auto& [model, entries] : summary.at("models").items())
        for (const auto& [name, value] : entries.items())
            if (name.ends_with("/total") && std::ranges::count(name, '/') == 1) totals.insert(name);
    std::vector<std::string> svgs;
    const auto add = [&](io::IntervalPlot plot, const char* key, const std::function<Json(const std::string&)>& value_of) {
        add_rows(plot, models, key, value_of);
        if (!plot.rows.empty()) svgs.push_back(io::svg_of(plot));
    };
    for (const std::string& name : totals) {
        const auto value_in = [&](const char* part) {
            return [&, part](const std::string& model) { return summary.at(part).value(model, Json::object()).value(name, Json()); };
        };
        add({name + ", held-out prompts", {}}, "mean", value_in("models"));
        add({name + ", gain over " + models.at(0), {}, 2, true}, "mean", value_in("gain"));
    }
    add({"Elo", {}, 0}, "elo", [&](const std::string& model) { return summary.at("elo").value(model, Json()); });
    const std::string address = "../" + io::address_of(directory.filename().string()) + "/";
    std::string html = plots(svgs) + fmt::format("<pre>{}</pre>\n", escape_html(io::read_text(directory / "table.txt")));
    std::vector<std::string> sheets;
    for (const auto& entry : fs::directory_iterator(directory))
        if (const std::string name = entry.path().filename().string(); name.starts_with("contact-") && name.ends_with(".png")) sheets.push_back(name);
    std::ranges::sort(sheets);
    for (const std::string& sheet : sheets)
        html += fmt::format("<h3>{0}</h3>\n<a href=\"{1}\"><img class=\"sheet\" loading=\"lazy\" alt=\"{0}\" src=\"{1}\"></a>\n", escape_html(sheet),
                            address + io::address_of(sheet));
    return html;
}

std::string evaluations(const RunDirectory& run) {
    std::string html;
    std::vector<fs::path> further;
    for (const auto& entry : fs::directory_iterator(run.root))
        if (entry.path().filename().string().starts_with("eval-") && fs::exists(entry.path() / io::manifest_name)) further.push_back(entry.path());
    std::ranges::sort(further);
    if (fs::exists(run.evaluation() / io::manifest_name)) html += whatever_comes_of([&] { return evaluation(run.evaluation()); });
    for (const fs::path& directory : further)
        html += fmt::format("<details><summary>{}</summary>\n{}</details>\n", escape_html(directory.filename().string()),
                            whatever_comes_of([&] { return evaluation(directory); }));
    return html;
}

/// Verdicts and reward weights of each task.
std::string curation(const RunDirectory& run) {
    std::string html;
    for (const Json& record : io::read_metrics(run.metrics())) {
        const std::string policy = record.value("policy", "");
        if (record.value("stage", "") != "curate" || !fs::exists(run.curation(policy) / io::manifest_name)) continue;
        html += fmt::format("<h3>{}</h3>\n<p>{} prompts:", escape_html(policy), record.value("prompts", 0));
        const Json verdicts = record.value("verdicts", Json::object()), by_category = record.value("weights", Json::object());
        for (const auto& [verdict, count] : verdicts.items()) html += fmt::format(" {} {}", escape_html(verdict), count.dump());
        html += "</p>\n<table><tr><th>category</th><th>weights of the reward</th></tr>\n";
        for (const auto& [category, weights] : by_category.items()) {
            std::string text;
            for (const auto& [dimension, weight] : weights.items())
                text += fmt::format("{}{} {:.2f}", text.empty() ? "" : ", ", escape_html(dimension), weight.get<double>());
            html += fmt::format("<tr><td>{}</td><td>{}</td></tr>\n", escape_html(category), text);
        }
        html += "</table>\n";
    }
    return html;
}

std::string judge(const RunDirectory& run) {
    const fs::path table = run.judge() / "table.txt";
    return fs::exists(run.judge() / io::manifest_name) && fs::exists(table) ? fmt::format("<pre>{}</pre>\n", escape_html(io::read_text(table))) : "";
}

std::string page(const Context& c, const std::vector<JobState>& jobs, const std::function<std::map<std::string, Curves>()>& curves) {
    const auto made = static_cast<std::size_t>(std::ranges::count_if(jobs, is_made));
    const std::string name = escape_html((c.run.root / "").parent_path().filename().string());
    std::string html = "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n";
    // What the page shows was written by prompts and judges: nothing in it runs or is fetched from elsewhere.
    html += "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'\">\n";
    if (made < jobs.size()) html += "<meta http-equiv=\"refresh\" content=\"60\">\n";
    html += fmt::format("<title>{}</title>\n<style>{}</style>\n<h1>{}</h1>\n", name, style, name);
    html += fmt::format("<p>{} of {} stages complete. <span class=\"quiet\">Model {}, configuration {}.</span></p>\n", made, jobs.size(),
                        escape_html(c.model().string()), c.config.hash());
    html += section("Failed", failures(jobs));
    html += section("Evaluation", evaluations(c.run));
    html += section("Learning", whatever_comes_of([&] { return learning(c, curves()); }));
    html += section("Newest samples", newest_pictures(c.run, jobs));
    html += section("Judge", whatever_comes_of([&] { return judge(c.run); }));
    html += section("Curation", whatever_comes_of([&] { return curation(c.run); }));
    html += section("Stages", stages_table(jobs) + times_plot(jobs));
    html += section("Configuration", fmt::format("<details><summary>config.toml</summary>\n<pre>{}</pre></details>\n", escape_html(io::read_text(c.run.config()))));
    return html + "</html>\n";
}

/// A file a policy, which grows: TensorBoard goes on reading it where it was. Where the run no longer is what the newest file says (stages were made
/// again) there is a newer one, whose name comes after it; those before it stay, since a reader may have them open.
void write_events(const fs::path& directory, const Curves& curves) {
    const std::string bytes = io::event_file(scalars_of(curves));
    const auto file = [&](int number) { return directory / fmt::format("events.out.tfevents.{:010}.atelier", number); };
    io::make_directories(directory);
    int newest = 0;
    while (fs::exists(file(newest + 1))) ++newest;
    const std::string before = newest > 0 ? io::read_text(file(newest)) : "";
    // A file that a killed writer left is the beginning of what is written now.
    if (newest > 0 && bytes.starts_with(before))
        io::append_text(file(newest), std::string_view(bytes).substr(before.size()));
    else
        io::write_text(file(newest + 1), bytes);
}

}  // namespace

void publish_report(const RunDirectory& run) {
    const Context c{run, config::Config::resolve(run.config(), {}, schema()), nullptr, "", 1};
    io::make_directories(run.report());
    const io::Turn turn(run.report() / ".lock");
    io::remove_temporaries(run.report());
    const auto jobs = job_states(c);
    io::publish_text(run.report() / "index.html", page(c, jobs, [&] { return curves_of(run, jobs); }));
    for (const auto& [policy, curves] : curves_of(run, jobs)) write_events(run.tensorboard() / policy, curves);
}

}  // namespace atelier::stage
