#include "stage/inspect.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <ostream>
#include <set>

#include "core/json.hpp"
#include "io/file_io.hpp"
#include "io/hdf5.hpp"
#include "io/image/png.hpp"
#include "io/lookup.hpp"
#include "io/manifest.hpp"
#include "io/metrics.hpp"
#include "io/trajectory_index.hpp"
#include "io/safetensors.hpp"
#include "model/dit/dit.hpp"
#include "nn/lora_file.hpp"
#include "stage/curated.hpp"
#include "stage/label_sheet.hpp"
#include "stage/run_history.hpp"
#include "stage/schema.hpp"
#include "stage/training_state.hpp"

namespace atelier::stage {
namespace {

namespace fs = std::filesystem;

std::string size_text(std::uintmax_t bytes) {
    return bytes < (1u << 20) ? fmt::format("{:.1f} KiB", static_cast<double>(bytes) / 1024)
                              : fmt::format("{:.1f} MiB", static_cast<double>(bytes) / (1 << 20));
}

const char* status_name(std::uint8_t status) {
    switch (static_cast<io::SampleStatus>(status)) {
        case io::SampleStatus::complete:
            return "complete";
        case io::SampleStatus::reward_absent:
            return "no score";
        case io::SampleStatus::group_dropped:
            return "dropped";
    }
    return "unknown";
}

void describe_manifest(const fs::path& directory, std::ostream& out) {
    const io::Manifest m = io::read_manifest(directory);
    out << fmt::format("stage {}{}{}, made {} to {} on {} by {} rank(s), version {}\n", m.stage,
                       m.task.empty() ? "" : " " + m.task,
                       m.iteration > 0 ? fmt::format(" {}", m.iteration) : "", m.started_utc,
                       m.finished_utc, m.host, m.world_size, m.code_version);
    out << fmt::format("configuration {}\n", m.config_hash);
    for (const auto& [name, digest] : m.inputs)
        out << fmt::format("  from {:<40} {}\n", name, digest.hash);
    std::uintmax_t bytes = 0;
    for (const auto& [name, digest] : m.outputs) bytes += digest.size;
    out << fmt::format("{} outputs, {}\n", m.outputs.size(), size_text(bytes));
    if (!m.facts.empty()) out << m.facts.dump(1) << '\n';
}

/// Sums of a dimension's scores.
struct ScoreSums {
    double sum = 0, square = 0;
    std::int64_t n = 0;
};

/// One line a sample; `head` is said again where it changes.
void describe_samples(const io::TrajectoryShard& shard, const io::TrajectorySamples& s,
                      std::string& head, std::map<std::string, ScoreSums>& sums, std::ostream& out) {
    std::string text = fmt::format("latents {}x{}x{}, {} steps, {} kept", s.height, s.width,
                                   s.channels, s.steps, s.trained);
    if (s.trained > 0) {
        std::vector<std::uint32_t> steps(s.trained_step.begin(),
                                         s.trained_step.begin() + s.trained);
        text += fmt::format(" (steps {})", fmt::join(steps, ", "));
    }
    text += fmt::format("\n{:>8} {:>6}", "prompt", "member");
    for (const auto& [name, column] : s.reward) text += fmt::format(" {:>12}", name);
    if (!s.total.empty()) text += fmt::format(" {:>8} {:>9} {:>9}", "total", "advantage", "status");
    if (s.trained > 0) text += fmt::format(" {:>12}", "mean log p");
    if (text != head) out << text << '\n';
    head = text;
    for (std::int64_t i = 0; i < s.samples(); ++i) {
        const auto m = static_cast<std::size_t>(i);
        std::string line =
            fmt::format("{:>8} {:>6}", shard.prompts.id[s.prompt[m]].substr(0, 8), s.member[m]);
        for (const auto& [name, column] : s.reward) {
            line += column.present[m] != 0 ? fmt::format(" {:>12.3f}", column.score[m])
                                           : fmt::format(" {:>12}", "absent");
            if (column.present[m] == 0) continue;
            ScoreSums& all = sums[name];
            all.sum += column.score[m], all.square += double(column.score[m]) * column.score[m], ++all.n;
        }
        if (!s.total.empty())
            line += fmt::format(" {:>8.3f} {:>9.3f} {:>9}", s.total[m], s.advantage[m],
                                status_name(s.status[m]));
        if (s.trained > 0) {
            double sum = 0;
            for (std::int64_t k = 0; k < s.trained; ++k)
                sum += s.log_prob[m * static_cast<std::size_t>(s.trained) +
                                  static_cast<std::size_t>(k)];
            line += fmt::format(" {:>12.6f}", sum / static_cast<double>(s.trained));
        }
        out << line << '\n';
    }
}

/// One shard after another: as much memory for a million samples as for a shard's.
void describe_shards(const std::vector<fs::path>& files, std::ostream& out) {
    std::string head;
    std::map<std::string, ScoreSums> sums;
    std::int64_t samples = 0, prompts = 0;
    for (const fs::path& path : files) {
        const auto shard = io::read_trajectory(path, {}, io::TrajectoryParts::scores);
        const io::TrajectoryHeader& h = shard.header;
        if (path == files.front())
            out << fmt::format(
                "{}: {} {} {} of run {}, rank {} of {}, {}\nsampler {} (eta {}), guidance {} trained "
                "as {}, log p: {}\nmodel {}, inputs {}, configuration {}, version {}\n",
                path.string(), h.stage, h.task, h.iteration, h.run_id, h.rank, h.world_size,
                h.created_utc, h.sampler, h.eta, h.guidance_scale, h.guidance_train, h.log_prob,
                h.model_hash, h.inputs_hash.empty() ? "unknown" : h.inputs_hash, h.config_hash, h.code_version);
        for (std::size_t p = 0; p < shard.prompts.id.size(); ++p)
            out << fmt::format("prompt {} [{}] {}\n", shard.prompts.id[p],
                               shard.prompts.category[p], shard.prompts.text[p]);
        for (const io::TrajectorySamples& s : shard.shapes) {
            describe_samples(shard, s, head, sums, out);
            samples += s.samples();
        }
        prompts += static_cast<std::int64_t>(shard.prompts.id.size());
    }
    for (const auto& [name, all] : sums) {
        const auto n = static_cast<double>(all.n);
        out << fmt::format("{:<14} mean {:.3f}, std {:.3f}, {} scores\n", name, all.sum / n,
                           std::sqrt(std::max(0.0, all.square / n - all.sum / n * all.sum / n)), all.n);
    }
    out << fmt::format("{} samples of {} prompts in {} files\n", samples, prompts, files.size());
}

void describe_curated(const fs::path& path, std::ostream& out) {
    const Curated c = read_curated(path);
    std::map<std::string, std::map<std::string, int>> counts;
    for (std::size_t i = 0; i < c.id.size(); ++i) ++counts[c.category[i]][c.verdict[i]];
    out << fmt::format("{}: {} of {} prompts kept\n", path.string(), c.kept_numbers().size(),
                       c.id.size());
    for (const auto& [category, verdicts] : counts) {
        out << fmt::format("{:<14}", category);
        for (const auto& [verdict, count] : verdicts) out << fmt::format("  {} {}", verdict, count);
        out << '\n';
    }
    for (const auto& [category, weights] : c.weights)
        for (const auto& [dimension, weight] : weights)
            out << fmt::format(
                "weight of {}/{}: {:.3f} (mean standard deviation within a group {:.3f})\n",
                category, dimension, weight, c.mean_std.at(category).at(dimension));
}

void describe_tensors(const io::Safetensors& file, std::ostream& out) {
    std::int64_t count = 0;
    for (const auto& [name, tensor] : file.tensors()) {
        out << fmt::format("{:<72} {:>5} {}\n", name, name_of(tensor.dtype), tensor.shape.str());
        count += tensor.shape.elements();
    }
    out << fmt::format("{}: {} tensors, {} numbers\n", file.path().string(), file.tensors().size(),
                       count);
}

/// Adapters say their rank; how much that is of a model only the model knows (atelier-plan --memory). `path`: a file or a directory.
void describe_adapter(const fs::path& path, std::ostream& out) {
    const nn::LoraListing adapter = nn::list_lora(path);
    describe_tensors(adapter.file, out);
    out << fmt::format("adapter of {}, {} parameters\n", adapter.text(), adapter.parameters());
}

void describe_weights(const fs::path& path, std::ostream& out) {
    const auto file = io::Safetensors::open(path);
    for (const auto& [name, tensor] : file.tensors())
        if (name.find(".lora_") != std::string::npos) return describe_adapter(path, out);
    describe_tensors(file, out);
}

/// Weights of a model's component, as diffusers or transformers call them.
io::Safetensors open_component(const fs::path& directory) {
    const bool is_model = fs::exists(directory / "model.safetensors") || fs::exists(directory / "model.safetensors.index.json");
    return io::Safetensors::open_component(directory, is_model ? "model" : dit::weights_stem);
}

/// A pipeline directory: parameters of every component that has weights, from headers alone.
void describe_model(const fs::path& directory, std::ostream& out) {
    const auto index = read_json(directory / "model_index.json");
    std::int64_t all = 0;
    for (const auto& [component, entry] : index.items()) {
        if (!entry.is_array() || entry.size() != 2 || !entry[1].is_string()) continue;
        std::int64_t count = 0;
        std::set<std::string> dtypes;
        bool has_weights = false;
        if (fs::is_directory(directory / component))
            for (const auto& file : fs::directory_iterator(directory / component)) has_weights |= file.path().extension() == ".safetensors";
        if (!has_weights) continue;
        const io::Safetensors weights = open_component(directory / component);
        for (const auto& [name, tensor] : weights.tensors()) {
            count += tensor.shape.elements();
            dtypes.insert(name_of(tensor.dtype));
        }
        out << fmt::format("{:<14} {:<34} {:>13} parameters in {} tensors, {}\n", component, entry[1].get<std::string>(), count,
                           weights.tensors().size(), fmt::join(dtypes, ", "));
        all += count;
    }
    out << fmt::format("{}: {} parameters\n", directory.string(), all);
}

void describe_run(const RunDirectory& run, std::ostream& out) {
    Context context{run, config::Config::resolve(run.config(), {}, schema()), nullptr, "", 1};
    std::map<std::string, std::pair<int, int>> counts;
    for (const JobState& state : job_states(context)) {
        auto& [done, all] = counts[state.kind];
        ++all;
        done += state.made ? 1 : 0;
    }
    out << fmt::format("run {} of {}, configuration {}\n", run.root.string(),
                       context.model().string(), context.config.hash());
    for (const auto& [name, count] : counts)
        out << fmt::format("{:<24} {} of {} complete\n", name, count.first, count.second);
    std::map<std::string, nlohmann::json> last;
    for (const nlohmann::json& record : io::read_metrics(run.metrics())) {
        if (!record.contains("reward")) continue;
        auto& entry = last[record.value("policy", "")];
        if (entry.is_null() || entry["iteration"] < record["iteration"]) entry = record;
    }
    for (const auto& [policy, record] : last)
        for (const auto& [name, v] : record["reward"].items())
            out << fmt::format("{} {}: {:<12} {:.3f} [{:.3f}, {:.3f}]\n", policy,
                               record["iteration"].get<int>(), name, v["mean"].get<double>(),
                               v["low"].get<double>(), v["high"].get<double>());
    for (const auto& [policy, record] : last)
        if (record.contains("gap"))
            out << fmt::format("{} {}: judge above truth by {:.3f}, {:+.3f} since iteration 1\n",
                               policy, record["iteration"].get<int>(),
                               record["gap"]["all"]["mean"].get<double>(),
                               record["gap_growth"].get<double>());
    if (fs::exists(run.evaluation() / "table.txt")) out << io::read_text(run.evaluation() / "table.txt");
    if (fs::exists(run.root / "failed"))
        for (const auto& entry : fs::directory_iterator(run.root / "failed"))
            out << io::read_text(entry.path());
}

}  // namespace

std::vector<fs::path> shards_at(const fs::path& path) {
    if (!fs::is_directory(path)) return {path};
    std::vector<fs::path> shards;
    for (const auto& entry : fs::directory_iterator(path))
        if (entry.path().filename().string().starts_with("shard-") &&
            entry.path().extension() == ".h5")
            shards.push_back(entry.path());
    std::sort(shards.begin(), shards.end());
    ATELIER_CHECK_INPUT(!shards.empty(), "{} holds no shard-*.h5", path.string());
    return shards;
}

void describe(const fs::path& path, std::ostream& out) {
    ATELIER_CHECK_INPUT(fs::exists(path), "{} is missing", path.string());
    if (fs::is_directory(path)) {
        if (fs::exists(path / "config.toml"))
            return describe_run({fs::absolute(path).lexically_normal()}, out);
        if (fs::exists(path / io::manifest_name)) describe_manifest(path, out);
        if (fs::exists(path / io::trajectory_index_name)) return describe_shards(shards_at(path), out);
        for (const fs::path& file : TrainingState::files(path)) describe(file, out);
        if (nn::holds_lora(path)) return describe_adapter(path, out);
        if (fs::exists(path / "model_index.json")) return describe_model(path, out);
        if (fs::exists(path / "config.json") && !fs::exists(path / io::manifest_name))
            return describe_tensors(open_component(path), out);
        ATELIER_CHECK_INPUT(fs::exists(path / io::manifest_name),
                            "{} is neither a run, nor a stage's directory, nor a model, a component of one or an adapter",
                            path.string());
        return;
    }
    if (path.filename() == io::manifest_name) return describe_manifest(path.parent_path(), out);
    if (path.extension() == ".safetensors" || path.string().ends_with(".safetensors.index.json"))
        return describe_weights(path, out);
    if (path.extension() == ".jsonl") return describe_labels(judge::read_labels(path), path, out);
    const auto file = io::hdf5::File::open(path);
    const std::string schema = file.text_attribute("/", "schema");
    if (schema == io::TrajectoryShard::schema)
        return describe_shards(path.filename() == io::trajectory_index_name ? shards_at(path.parent_path())
                                                                            : std::vector{path},
                               out);
    if (schema == "atelier.prompts") return describe_curated(path, out);
    if (schema == "atelier.labels") return describe_labels(judge::read_labels(path), path, out);
    if (schema == "atelier.training") {
        out << fmt::format(
            "{}: AdamW's state after {} updates, iteration {}, {} numbers, configuration {}\n",
            path.string(), file.integer_attribute("/", "update"),
            file.integer_attribute("/", "iteration"), file.extents("/m").at(0),
            file.text_attribute("/", "config_hash"));
        return;
    }
    ATELIER_FAIL(ErrorKind::input, "{} holds schema {}, which is none of ours", path.string(),
                 schema);
}

int verify(const fs::path& path, std::ostream& out) {
    ATELIER_CHECK_INPUT(fs::exists(path), "{} is missing", path.string());
    std::vector<fs::path> files;
    if (fs::is_directory(path)) {
        for (auto entry = fs::recursive_directory_iterator(path); entry != fs::end(entry); ++entry) {
            const bool is_temporary = entry->path().filename().string().starts_with(io::temporary_prefix);
            if (is_temporary) entry.disable_recursion_pending();  // what is in it was never published
            if (is_temporary || entry->is_regular_file()) files.push_back(entry->path());
        }
        std::sort(files.begin(), files.end());
    } else {
        files.push_back(path);
    }
    int faults = 0, manifests = 0, shards = 0;
    for (const fs::path& file : files) {
        try {
            if (file.filename() == io::manifest_name) {
                io::is_complete(file.parent_path());
                ++manifests;
            } else if (file.filename().string().starts_with("shard-") &&
                       file.extension() == ".h5") {
                io::read_trajectory(file);
                ++shards;
            } else if (file.filename().string().starts_with(io::temporary_prefix)) {
                ATELIER_FAIL(ErrorKind::input,
                             "{} was left by a killed stage; running the stage again removes it",
                             file.string());
            }
        } catch (const Error& e) {
            out << e.message() << '\n';
            ++faults;
        }
    }
    out << fmt::format("{} manifests and {} shards checked, {} faults\n", manifests, shards,
                       faults);
    return faults;
}

int export_pictures(const fs::path& path, const fs::path& directory) {
    io::make_directories(directory);
    std::string lines;
    int count = 0;
    for (const fs::path& file : shards_at(path)) {
        const auto shard = io::read_trajectory(file);
        for (const io::TrajectorySamples& s : shard.shapes) {
            const std::size_t bytes = s.picture.size() / static_cast<std::size_t>(s.samples());
            for (std::size_t m = 0; m < static_cast<std::size_t>(s.samples()); ++m) {
                const std::string& id = shard.prompts.id[s.prompt[m]];
                const std::string name =
                    io::file_name_of(fmt::format("{}-{}-{:02}", file.stem().string(), id, s.member[m])) + ".png";
                io::Image image{
                    static_cast<int>(s.picture_width), static_cast<int>(s.picture_height), 4, {}};
                image.pixels.assign(
                    s.picture.begin() + static_cast<std::ptrdiff_t>(m * bytes),
                    s.picture.begin() + static_cast<std::ptrdiff_t>((m + 1) * bytes));
                io::write_png(directory / name, image);
                nlohmann::json line{{"picture", name},
                                    {"prompt", id},
                                    {"text", shard.prompts.text[s.prompt[m]]},
                                    {"member", s.member[m]},
                                    {"status", status_name(s.status[m])}};
                for (const auto& [dimension, column] : s.reward) {
                    line["scores"][dimension] =
                        column.present[m] != 0 ? nlohmann::json(column.score[m]) : nlohmann::json();
                    line["reasons"][dimension] = column.reason[m];
                }
                if (!s.advantage.empty()) line["advantage"] = s.advantage[m];
                lines += line.dump() + "\n";
                ++count;
            }
        }
    }
    io::write_text(directory / "samples.jsonl", lines);
    return count;
}

}  // namespace atelier::stage
