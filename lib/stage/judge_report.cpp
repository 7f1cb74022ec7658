#include "stage/judge_report.hpp"

#include <algorithm>
#include <cstring>
#include <map>

#include "core/progress.hpp"
#include "eval/score_agreement.hpp"
#include "io/csv.hpp"
#include "stage/gather.hpp"
#include "stage/scorers.hpp"
#include "stage/scoring.hpp"

namespace atelier::stage {
namespace {

using Json = nlohmann::json;

/// One picture with everything it is labelled for.
struct Picture {
    const judge::LabelledSample* first = nullptr;
    std::vector<const judge::LabelledSample*> labelled;
};

std::vector<Picture> pictures_of(const std::vector<judge::LabelledSample>& heldout) {
    std::vector<Picture> pictures;
    std::map<std::pair<std::string, std::string>, std::size_t> numbers;
    for (const judge::LabelledSample& s : heldout) {
        const auto [found, is_new] = numbers.try_emplace({s.kind, s.id}, pictures.size());
        if (is_new) pictures.push_back({&s, {}});
        Picture& p = pictures[found->second];
        ATELIER_CHECK_INPUT((p.first->picture == s.picture || p.first->picture->load().pixels == s.picture->load().pixels) && p.first->prompt == s.prompt,
                            "two labels of '{}' show different pictures or prompts", s.id);
        p.labelled.push_back(&s);
    }
    return pictures;
}

reward::Request request_of(const Picture& p, std::size_t number) {
    const judge::LabelledSample& s = *p.first;
    reward::Request r;
    r.sample_id = number;
    r.kind = s.kind;
    r.prompt = s.prompt;
    const io::Image picture = s.picture->load();
    r.height = picture.height;
    r.width = picture.width;
    for (std::size_t i = 0; i < picture.pixels.size(); i += static_cast<std::size_t>(picture.channels))
        for (int k = 0; k < 4; ++k) r.picture.push_back(k < picture.channels ? picture.pixels[i + static_cast<std::size_t>(k)] : 255);
    auto sources = std::make_shared<std::vector<io::Image>>();
    for (const auto& source : s.sources) sources->push_back(source->load());
    r.sources = std::move(sources);
    r.noise_key = {number, 0};
    return r;
}

/// What the judge is asked: dimensions that labels are there for, by kind.
std::map<std::string, std::vector<judge::Template>> asked_templates(const Context& c, const std::vector<judge::LabelledSample>& heldout) {
    std::map<std::string, std::vector<judge::Template>> templates;
    for (const judge::LabelledSample& s : heldout)
        if (!templates.contains(s.kind)) templates[s.kind] = judge::read_templates(c.config.text("judge.templates"), s.kind);
    for (auto& [kind, list] : templates)
        std::erase_if(list, [&, k = kind](const judge::Template& t) {
            return std::none_of(heldout.begin(), heldout.end(), [&](const auto& s) { return s.kind == k && s.dimension == t.dimension; });
        });
    return templates;
}

Json to_json(const eval::Statistic& s) {
    return {{"value", s.value}, {"low", s.low}, {"high", s.high}, {"n", s.n}};
}

// What stands in a verdict's place.
constexpr double not_judged = -1, not_applying = 0;

/// Labels of one dimension and category.
struct Group {
    std::vector<eval::ScoredLabel> values;
    int failed = 0;
    int rightly_absent = 0, missed_absent = 0, wrongly_absent = 0;
    void add(const judge::LabelledSample& s, double score) {
        if (score == not_judged)
            ++failed;
        else if (score == not_applying)
            ++(s.applies() ? wrongly_absent : rightly_absent);
        else if (!s.applies())
            ++missed_absent;
        else
            values.push_back({score, s.mean_score(), task_number(s.id)});
    }
};

Json agreement(const Context& c, const Group& group) {
    Json found{{"failed", group.failed},
               {"absent", {{"right", group.rightly_absent}, {"missed", group.missed_absent}, {"wrong", group.wrongly_absent}}}};
    const auto& values = group.values;
    if (values.empty()) return found;
    eval::BootstrapConfig bootstrap;
    bootstrap.seed = c.seed();
    found["mae"] = to_json(eval::mean_absolute_error(bootstrap, values));
    if (const auto s = eval::rank_agreement(bootstrap, values)) found["spearman"] = to_json(*s);
    if (const auto s = eval::pairwise_accuracy(bootstrap, values))
        found["pairwise_accuracy"] = to_json(*s);
    found["calibration"] = Json::array();
    for (const auto& l : eval::calibration(bootstrap, values))
        found["calibration"].push_back({{"level", l.level}, {"n", l.n}, {"mean_score", l.mean_score}, {"mean_label", to_json(l.label)}});
    return found;
}

}  // namespace

Bytes judging_bytes(const Context& c, const judge::QuestionMaker& model, const std::vector<judge::LabelledSample>& heldout) {
    std::size_t picture = 0, request = 0;  // of the largest
    for (const judge::LabelledSample& s : heldout) {
        const auto rgba = [](const judge::LabelledPicture& p) { return 4 * static_cast<std::size_t>(p.height()) * static_cast<std::size_t>(p.width()); };
        std::size_t all = rgba(*s.picture);
        picture = std::max(picture, all);
        for (const auto& source : s.sources) picture = std::max(picture, rgba(*source)), all += source->bytes();
        request = std::max(request, all);
    }
    const reward::PoolConfig pool = pool_config(c.config);
    const auto workers = static_cast<std::size_t>(pool.workers), waiting = static_cast<std::size_t>(pool.queue) + workers;
    return judge::native_judge_bytes(model, native_judge_config(c, {}, c.judge_device()), asked_templates(c, heldout), workers, picture) + waiting * request;
}

HeldoutReport judge_heldout(const Context& c, const std::filesystem::path& directory, const std::vector<judge::LabelledSample>& heldout) {
    const auto pictures = pictures_of(heldout);
    std::vector<double> scores(heldout.size());  // in the order of `heldout`
    Json said = Json::array();
    {
        const judge::NativeJudge judge(native_judge_config(c, directory, c.judge_device()), asked_templates(c, heldout));
        reward::Pool pool(judge, pool_config(c.config));
        std::vector<std::pair<std::size_t, std::future<reward::Outcome>>> outcomes;
        for (std::size_t i = 0; i < pictures.size(); ++i)
            if (c.is_mine(i)) outcomes.emplace_back(i, pool.submit(request_of(pictures[i], i)));
        Progress progress("judging", "held-out pictures",
                          static_cast<std::int64_t>(outcomes.size()), !c.world->is_root());
        std::int64_t done = 0;
        for (auto& [i, future] : outcomes) {
            const reward::Outcome outcome = future.get();
            for (const judge::LabelledSample* s : pictures[i].labelled) {
                const auto verdict = outcome.verdicts.find(s->dimension);
                const auto at = static_cast<std::size_t>(s - heldout.data());
                scores[at] = outcome.failed || verdict == outcome.verdicts.end() ? not_judged
                             : verdict->second.present                          ? verdict->second.score
                                                                                : not_applying;
                if (verdict != outcome.verdicts.end()) said.push_back({at, verdict->second.reason});
            }
            progress.update(++done);
        }
    }
    c.world->sum(std::span(scores));  // each is one rank's
    std::vector<std::string> reasons(heldout.size());
    for (const Json& part : gather_json(*c.world, said))
        for (const Json& each : part) reasons.at(each.at(0).get<std::size_t>()) = each.at(1);
    io::CsvRows rows{{"id", "kind", "dimension", "category", "label", "score", "rationale", "reason"}};
    Json report{{"dimensions", Json::object()}, {"annotators", Json::object()}};
    std::map<std::string, std::map<std::string, Group>> groups;
    std::map<std::string, std::vector<std::vector<double>>> units;
    for (std::size_t i = 0; i < heldout.size(); ++i) {
        const judge::LabelledSample& s = heldout[i];
        const std::string name = s.kind + "/" + s.dimension;
        for (const std::string& part : {std::string("all"), s.category}) groups[name][part].add(s, scores[i]);
        units[name].push_back(s.given_scores());
        const auto number = [](double value) { return fmt::format("{:.4f}", value); };
        rows.push_back({s.id, s.kind, s.dimension, s.category, s.applies() ? number(s.mean_score()) : "none",
                        scores[i] == not_judged     ? ""
                        : scores[i] == not_applying ? "none"
                                                    : number(scores[i]),
                        s.rationale, reasons[i]});
    }
    for (const auto& [name, parts] : groups)
        for (const auto& [part, group] : parts)
            report["dimensions"][name][part] = agreement(c, group);
    for (const auto& [name, values] : units)
        if (const auto alpha = eval::krippendorff_alpha(values))
            report["annotators"][name] = {{"alpha", *alpha}, {"units", eval::compared_units(values)}};
    return {report, io::to_csv(rows)};
}

std::string judge_table(const Json& report) {
    std::string table = fmt::format("{:<22} {:<12} {:>6} {:>22} {:>22} {:>22} {:>7}\n", "dimension",
                                    "category", "n", "MAE", "Spearman", "pairs in order", "failed");
    const auto cell = [](const Json& of, const char* key) {
        if (!of.contains(key)) return std::string("-");
        const Json& s = of.at(key);
        return fmt::format("{:.3f} [{:.3f}, {:.3f}]", s.at("value").get<double>(),
                           s.at("low").get<double>(), s.at("high").get<double>());
    };
    for (const auto& [name, parts] : report.at("dimensions").items())
        for (const auto& [part, of] : parts.items())
            table += fmt::format(
                "{:<22} {:<12} {:>6} {:>22} {:>22} {:>22} {:>7}\n", name, part,
                of.contains("mae") ? of.at("mae").at("n").get<std::int64_t>() : 0, cell(of, "mae"),
                cell(of, "spearman"), cell(of, "pairwise_accuracy"), of.at("failed").get<int>());
    for (const auto& [name, parts] : report.at("dimensions").items()) {
        if (!parts.at("all").contains("calibration")) continue;
        std::string levels;
        for (const Json& l : parts.at("all").at("calibration"))
            levels += fmt::format("{} {:.2f} to {}", levels.empty() ? "" : ",", l.at("mean_score").get<double>(), cell(l, "mean_label"));
        table += fmt::format("{}: mean score to mean label, by level{}\n", name, levels);
    }
    for (const auto& [name, parts] : report.at("dimensions").items()) {
        const Json& absent = parts.at("all").at("absent");
        const int right = absent.at("right"), missed = absent.at("missed"), wrong = absent.at("wrong");
        if (right + missed + wrong > 0)
            table += fmt::format("{}: said not to apply for {} of {} to which it does not, and for {} to which it does\n", name, right, right + missed, wrong);
    }
    for (const auto& [name, of] : report.at("annotators").items())
        table += fmt::format("{}: annotators agree with alpha {:.3f} over the {} pictures with two scores or more\n", name,
                             of.at("alpha").get<double>(), of.at("units").get<std::size_t>());
    return table;
}

}  // namespace atelier::stage
