#include "stage/scorers.hpp"

#include <sys/resource.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <set>

#include "identity/identity_scorer.hpp"
#include "judge/http_judge.hpp"
#include "model/processor/image_inputs.hpp"
#include "stage/picture_sizes.hpp"
#include "stage/scoring.hpp"
#include "stage/shard_writer.hpp"

namespace atelier::stage {
namespace {

/// A secret, from the environment.
std::string key_of(const config::Config& config) {
    const std::string& name = config.text("judge.key_variable");
    if (name.empty()) return {};
    const char* key = std::getenv(name.c_str());
    ATELIER_CHECK_USAGE(key != nullptr && *key != '\0',
                        "judge.key_variable: the environment has no {}, or an empty one", name);
    std::string text(key);
    ATELIER_CHECK_USAGE(std::all_of(text.begin(), text.end(),
                                    [](unsigned char c) { return c > 0x20 && c < 0x7f; }),
                        "judge.key_variable: {} holds characters that no key has (spaces, line "
                        "ends)",
                        name);
    // A crash must not write the key to a core file: 1 is no room for a file, and none for a program that cores are piped to (core(5)).
    const rlimit no_core{1, 1};
    setrlimit(RLIMIT_CORE, &no_core);
    return text;
}

std::unique_ptr<reward::Scorer> make_http_scorer(const Context& c) {
    const config::Config& config = c.config;
    judge::HttpJudgeConfig h;
    h.url = config.text("judge.url");
    h.model = config.text("judge.model");
    h.temperature = config.number("judge.temperature");
    h.top_logprobs = static_cast<int>(config.integer("judge.top_logprobs"));
    h.retries = static_cast<int>(config.integer("reward.retries"));
    h.backoff_seconds = config.number("judge.backoff");
    h.longest_wait_seconds = config.number("judge.longest_wait");
    h.seed = c.seed();
    h.http.in_flight = static_cast<int>(config.integer("judge.in_flight"));
    h.http.connect_seconds = config.number("judge.connect_deadline");
    h.http.total_seconds = config.number("judge.deadline");
    h.http.key = key_of(config);
    h.breaker.failures = static_cast<int>(config.integer("judge.breaker_failures"));
    h.breaker.pause_seconds = config.number("judge.breaker_pause");
    h.breaker.outage_seconds = config.number("judge.outage");
    return judge::make_http_judge(h, judge_templates(c.config));
}

/// The configured judge, or the one that the run trains.
std::filesystem::path judge_directory(const Context& c) {
    const std::string& named = c.config.text("judge.directory");
    return named.empty() ? c.run.judge() : std::filesystem::path(named);
}

/// Which of the files that name a judge's weights are there.
std::vector<const char*> weights_in(const std::filesystem::path& directory) {
    std::vector<const char*> names{"model.safetensors", "model.safetensors.index.json"};
    std::erase_if(names, [&](const char* name) { return !std::filesystem::exists(directory / name); });
    return names;
}

std::unique_ptr<reward::Scorer> make_native_judge(const Context& c) {
    if (c.config.text("judge.directory").empty()) require_complete(*c.world, c.run.judge(), "run atelier-reward-train first");
    return std::make_unique<judge::NativeJudge>(native_judge_config(c, judge_directory(c), c.judge_device()), judge_templates(c.config));
}

std::unique_ptr<reward::Scorer> make_named(const Context& c) {
    const std::string& name = c.config.text("reward.scorer");
    if (name == "http") return make_http_scorer(c);
    if (name == "judge") return make_native_judge(c);
    return reward::make_world_scorer();
}

/// The files that score identity, by the keys that name them; empty: the scorer does.
std::vector<std::filesystem::path> identity_files(const config::Config& config) {
    const std::string& who = config.text("reward.identity");
    if (who == "opencv") return {config.text("identity.detector"), config.text("identity.recogniser")};
    if (who == "small") return {std::filesystem::path(config.text("identity.network")) / "model.safetensors"};
    return {};
}

std::unique_ptr<reward::Scorer> with_identity(const config::Config& config,
                                              std::unique_ptr<reward::Scorer> scorer) {
    const std::string& who = config.text("reward.identity");
    if (who == "scorer") return scorer;
    auto embedder = who == "opencv" ? identity::make_opencv_embedder(
                                          {config.text("identity.detector"),
                                           config.text("identity.recogniser"),
                                           config.number("identity.min_confidence")})
                                    : identity::make_small_embedder(config.text("identity.network"));
    return identity::make_identity_scorer(
        std::move(scorer), std::move(embedder),
        identity::ScoreTable(config.list("identity.table"), "identity.table"));
}

}  // namespace

judge::NativeJudgeConfig native_judge_config(const Context& c, const std::filesystem::path& directory, Device device) {
    judge::NativeJudgeConfig n;
    n.directory = directory;
    n.answers = static_cast<int>(c.config.integer("judge.answers"));
    n.context = c.config.integer("judge.context");
    n.temperature = c.config.number("judge.temperature");
    n.seed = c.seed();
    n.device = device;
    if (device != Device::cpu) n.precision = c.product_precision();
    return n;
}

std::map<std::string, std::vector<judge::Template>> judge_templates(const config::Config& config) {
    std::map<std::string, std::vector<judge::Template>> templates;
    for (const std::string& task : config.tasks())
        if (const std::string& kind = config.text("task." + task + ".kind"); !templates.contains(kind))
            templates[kind] = judge::read_templates(config.text("judge.templates"), kind);
    if (config.text("reward.identity") != "scorer" && templates.contains("edit"))
        std::erase_if(templates["edit"], [](const judge::Template& t) {
            return t.dimension == identity::identity_dimension;  // not asked of the judge
        });
    return templates;
}

std::vector<std::string> scored_dimensions(const config::Config& config, const std::string& kind) {
    std::vector<std::string> dimensions;
    if (config.text("reward.scorer") == "world")
        dimensions = reward::make_world_scorer()->dimensions(kind);
    else
        for (const auto templates = judge_templates(config); const judge::Template& t : templates.at(kind)) dimensions.push_back(t.dimension);
    const bool has_identity = std::ranges::find(dimensions, identity::identity_dimension) != dimensions.end();
    if (kind == "edit" && config.text("reward.identity") != "scorer" && !has_identity)
        dimensions.push_back(identity::identity_dimension);
    return dimensions;
}

std::map<std::string, std::int64_t> dimension_tiers(const config::Config& config, const std::string& kind) {
    std::map<std::string, std::int64_t> tiers;
    std::int64_t next = 0;
    if (config.text("reward.scorer") != "world")
        for (const auto templates = judge_templates(config); const judge::Template& t : templates.at(kind)) {
            tiers[t.dimension] = t.tier;
            next = std::max(next, t.tier + 1);
        }
    for (const std::string& dimension : scored_dimensions(config, kind))
        if (tiers.try_emplace(dimension, next).second) ++next;
    return tiers;
}

std::unique_ptr<reward::Scorer> make_scorer(const Context& c) {
    check_scorer(c.config);
    std::unique_ptr<reward::Scorer> scorer = with_identity(c.config, make_named(c));
    const reward::Faults faults{c.config.number("reward.test_delay"),
                                c.config.number("reward.test_failures"), c.seed()};
    if (faults.delay_seconds > 0 || faults.failure_share > 0)
        scorer = reward::make_faulty_scorer(std::move(scorer), faults);
    return scorer;
}

std::unique_ptr<reward::Scorer> make_truth(const config::Config& config) {
    return config.text("reward.truth") == "world" ? reward::make_world_scorer() : nullptr;
}

void check_scorer(const config::Config& config) {
    const std::string& variable = config.text("judge.key_variable");
    const auto is_name = [](unsigned char c) { return std::isalnum(c) != 0 || c == '_'; };
    ATELIER_CHECK_USAGE(std::all_of(variable.begin(), variable.end(), is_name) &&
                            (variable.empty() || std::isdigit(static_cast<unsigned char>(variable[0])) == 0),
                        "judge.key_variable must name an environment variable; if the key itself "
                        "stands there, take it out of the file");
    ATELIER_CHECK_USAGE(config.text("judge.url").find('@') == std::string::npos,
                        "judge.url holds a user or password: secrets come from the environment "
                        "only (judge.key_variable)");
    const std::string& identity = config.text("reward.identity");
    if (identity == "opencv")
        ATELIER_CHECK_USAGE(!config.text("identity.detector").empty() &&
                                !config.text("identity.recogniser").empty(),
                            "reward.identity = \"opencv\" needs identity.detector and "
                            "identity.recogniser, ONNX files");
    if (identity == "small")
        ATELIER_CHECK_USAGE(!config.text("identity.network").empty(),
                            "reward.identity = \"small\" needs identity.network, a directory");
    if (identity != "scorer") identity::ScoreTable(config.list("identity.table"), "identity.table");
    ATELIER_CHECK_USAGE(config.number("reward.gap_stop") == 0 || !config.text("reward.truth").empty(),
                        "reward.gap_stop needs reward.truth: without it no gap is measured");
    if (config.text("reward.scorer") == "world") return;
    ATELIER_CHECK_USAGE(!config.text("judge.templates").empty(),
                        "reward.scorer = \"{}\" needs judge.templates, a directory of templates",
                        config.text("reward.scorer"));
    const auto truth = make_truth(config);
    for (const auto& [kind, asked] : judge_templates(config))
        ATELIER_CHECK_USAGE(config.number("reward.gap_stop") == 0 || std::any_of(asked.begin(), asked.end(), [&, &kind = kind](const judge::Template& t) {
                                const auto& known = truth->dimensions(kind);
                                return std::find(known.begin(), known.end(), t.dimension) != known.end();
                            }),
                            "reward.gap_stop: no dimension of {} that the judge is asked for is measured by reward.truth", kind);
    if (config.text("reward.scorer") == "judge")
        ATELIER_CHECK_USAGE(!config.text("judge.directory").empty() || config.flag("pipeline.judge"),
                            "reward.scorer = \"judge\" needs judge.directory, a Qwen3-VL, or "
                            "pipeline.judge = true, which trains one");
    if (config.text("reward.scorer") == "http")
        ATELIER_CHECK_USAGE((config.text("judge.url").starts_with("http://") || config.text("judge.url").starts_with("https://")) &&
                                !config.text("judge.model").empty(),
                            "reward.scorer = \"http\" needs judge.url, as http://host:8000/v1, and judge.model; found \"{}\" and \"{}\"",
                            config.text("judge.url"), config.text("judge.model"));
}

void check_scorer_files(const Context& c) {
    namespace fs = std::filesystem;
    for (const std::string& task : c.config.tasks()) check_weights(c, task);
    for (const fs::path& file : identity_files(c.config)) ATELIER_CHECK_INPUT(fs::exists(file), "{} is missing, which scores identity", file.string());
    if (c.config.text("reward.scorer") != "judge" || c.config.text("judge.directory").empty()) return;
    const fs::path directory = judge_directory(c);
    const judge::QuestionMaker maker(directory);
    ATELIER_CHECK_INPUT(!weights_in(directory).empty(), "{} holds no weights: neither model.safetensors nor its index", directory.string());
    const judge::NativeJudgeConfig config = native_judge_config(c, directory, Device::cpu);
    const auto templates = judge_templates(c.config);
    judge::check_answers(config, templates);
    const auto blank = [](model::PictureSize size) { return io::Image(static_cast<int>(size.width), static_cast<int>(size.height), 3); };
    const std::int64_t side = c.config.integer("sampling.output_resolution");
    std::map<std::string, model::PictureSize> largest;  // of each kind
    for (const std::string& task : c.config.tasks())
        for (const model::PictureSize& size : configured_sizes(c.config, task))
            if (auto& found = largest[c.kind(task)]; size.width * size.height > found.width * found.height) found = size;
    for (const auto& [kind, asked] : templates)
        for (const judge::Template& t : asked) {
            const io::Image picture = blank(largest.at(kind));
            const std::vector<io::Image> sources(kind == "edit" ? 1 : 0, blank(model::reference_size({side, side}, side)));
            const std::size_t tokens = maker.make_question(judge::make_conversation(t, "", picture, sources)).ids.size();
            ATELIER_CHECK_USAGE(tokens <= static_cast<std::size_t>(config.context), "judge.context = {}, but a question about {} has {} tokens without a prompt",
                                config.context, t.dimension, tokens);
        }
}

namespace {

/// A file that verdicts are made from.
struct ScorerFile {
    std::filesystem::path path;
    bool may_be_published = false;  ///< a manifest beside it may say its digest
};

/// What a native judge reads of its directory, by name. Empty: there are no weights yet.
std::set<std::string> judge_files(const std::filesystem::path& directory) {
    std::set<std::string> names;
    if (weights_in(directory).empty()) return names;
    const io::Safetensors weights = vlm::open_weights(directory);
    for (const std::filesystem::path& file : files_of(weights)) names.insert(file.lexically_relative(directory).string());
    names.insert(weights.path().lexically_relative(directory).string());  // the index, where there is one
    for (const char* name : {"config.json", "tokenizer.json", "processor_config.json", "preprocessor_config.json"})
        if (std::filesystem::exists(directory / name)) names.insert(name);
    return names;
}

std::map<std::string, ScorerFile> scorer_files(const Context& c) {
    std::map<std::string, ScorerFile> files;
    for (const std::filesystem::path& file : identity_files(c.config)) files["identity/" + file.filename().string()] = {file};
    if (c.config.text("reward.scorer") == "world") return files;
    for (const auto& [kind, templates] : judge_templates(c.config))
        for (const judge::Template& t : templates) files["judge/" + kind + "/" + t.dimension] = {t.path};
    if (c.config.text("reward.scorer") == "judge")
        // The run's own: somebody else's may be changed behind its manifest.
        for (const auto directory = judge_directory(c); const std::string& name : judge_files(directory))
            files["judge/" + name] = {directory / name, c.config.text("judge.directory").empty()};
    return files;
}

}  // namespace

std::map<std::string, io::FileDigest> scorer_inputs(const Context& c) {
    std::map<std::string, io::FileDigest> mine;
    std::size_t turn = 0;
    for (const auto& [name, file] : scorer_files(c)) {
        if (!c.is_mine(turn++)) continue;
        mine[name] = file.may_be_published ? stated_digest(file.path.parent_path(), file.path.filename().string()) : io::digest_file(file.path);
    }
    return gather_digests(*c.world, mine);
}

std::string inputs_hash(const std::map<std::string, io::FileDigest>& scorer, std::span<const Prompt> prompts) {
    nlohmann::json made_from = nlohmann::json::array();
    for (const auto& [name, digest] : scorer) made_from.push_back({name, digest.hash});
    for (const Prompt& p : prompts) {
        nlohmann::json line{p.id, p.task, p.category, p.text, p.attributes};
        if (p.size) line.push_back({p.size->height, p.size->width});
        for (const std::filesystem::path& image : p.images) line.push_back(io::digest_file(image).hash);
        made_from.push_back(std::move(line));
    }
    const std::string text = made_from.dump();
    return io::digest_bytes(text.data(), text.size());
}

}  // namespace atelier::stage
