#include "stage/evaluate.hpp"

#include <iostream>
#include <nlohmann/json.hpp>

#include "eval/bootstrap.hpp"
#include "eval/bradley_terry.hpp"
#include "flow/noise.hpp"
#include "io/image/contact_sheet.hpp"
#include "io/image/png.hpp"
#include "pipeline/generate.hpp"
#include "world/measure.hpp"

namespace atelier::stage {
namespace {

using Json = nlohmann::json;

// Iteration number of evaluation seeds: no training iteration has it.
constexpr std::uint64_t evaluation_iteration = ~std::uint64_t{0};
constexpr std::size_t sheet_rows = 12;

struct Sample {
    io::Image picture;
    std::map<std::string, double> scores;  ///< dimensions present
    double total() const {
        double sum = 0;
        for (const auto& [name, score] : scores) sum += score;
        return scores.empty() ? 0 : sum / static_cast<double>(scores.size());
    }
};

Sample sample_prompt(pipeline::Pipeline& model, const Context& c, const rl::SamplingSpec& spec, const Prompt& prompt) {
    const EncodedPair pair = encode_pair(model, c, prompt, spec);
    pipeline::GenerateRequest r;
    r.conditional = &pair.conditional;
    r.unconditional = spec.uses_guidance() ? &pair.unconditional : nullptr;
    r.guidance = spec.guidance;
    r.schedule = spec.schedule;
    r.target = spec.target;
    const std::int64_t channels = model.dit().config().in_channels;
    std::vector<float> latents(static_cast<std::size_t>(spec.target.tokens() * channels));
    fill_normal(flow::initial_noise_key(flow::sample_noise_key(c.seed(), evaluation_iteration, task_number(c.task) ^ prompt.number, 0)), latents);
    pipeline::generate_latents(model.dit(), model.dit_weights(), r, latents);
    const std::int64_t height = spec.target.height * model::pixels_per_latent, width = spec.target.width * model::pixels_per_latent;
    std::vector<float> pixels(static_cast<std::size_t>(height * width * 4));
    model.codec().decode(Tensor::of(latents.data(), {1, spec.target.tokens(), channels}), spec.target.height, spec.target.width,
                         Tensor::of(pixels.data(), {1, height, width, 4}));
    Sample s;
    s.picture.width = static_cast<int>(width);
    s.picture.height = static_cast<int>(height);
    s.picture.channels = 4;
    s.picture.pixels.resize(pixels.size());
    vae::to_bytes(pixels.data(), static_cast<std::int64_t>(pixels.size()), s.picture.pixels.data());
    for (const auto& [name, verdict] : world::measure(Json::parse(prompt.attributes), s.picture.pixels))
        if (verdict.present) s.scores[name] = verdict.score;
    return s;
}

/// Samples travel to rank 0 as JSON with the picture's bytes behind.
std::vector<std::byte> pack(const std::vector<std::pair<std::size_t, Sample>>& samples) {
    Json list = Json::array();
    for (const auto& [index, s] : samples)
        list.push_back({{"i", index}, {"s", s.scores}, {"w", s.picture.width}, {"h", s.picture.height}, {"p", Json::binary(s.picture.pixels)}});
    const auto bytes = Json::to_cbor(list);
    const auto* data = reinterpret_cast<const std::byte*>(bytes.data());
    return {data, data + bytes.size()};
}

void unpack(const std::vector<std::byte>& bytes, std::vector<Sample>& samples) {
    const auto* data = reinterpret_cast<const std::uint8_t*>(bytes.data());
    for (const Json& entry : Json::from_cbor(std::vector<std::uint8_t>(data, data + bytes.size()))) {
        Sample& s = samples.at(entry.at("i").get<std::size_t>());
        s.scores = entry.at("s").get<std::map<std::string, double>>();
        s.picture.width = entry.at("w");
        s.picture.height = entry.at("h");
        s.picture.channels = 4;
        s.picture.pixels = entry.at("p").get_binary();
    }
}

/// Columns of one number per prompt, for intervals that resample prompts.
Json interval_json(std::span<const double> values, std::span<const std::uint64_t> clusters) {
    const eval::Interval i = eval::bootstrap_mean({}, values, clusters);
    return {{"mean", i.mean}, {"low", i.low}, {"high", i.high}, {"n", i.n}};
}

Json summarise(const std::vector<Sample>& samples, const std::vector<Prompt>& prompts, const std::string& task) {
    std::map<std::string, std::pair<std::vector<double>, std::vector<std::uint64_t>>> columns;
    for (std::size_t i = 0; i < samples.size(); ++i) {
        const auto add = [&](const std::string& name, double value) {
            columns[name].first.push_back(value);
            columns[name].second.push_back(prompts[i].number);
        };
        for (const auto& [name, score] : samples[i].scores) {
            add(task + "/" + name, score);
            add(task + "/" + name + "/" + prompts[i].category, score);
        }
        add(task + "/total", samples[i].total());
    }
    Json json = Json::object();
    for (const auto& [name, column] : columns) json[name] = interval_json(column.first, column.second);
    return json;
}

void write_sheet(const std::filesystem::path& path, const Models& models, const std::vector<Prompt>& prompts,
                 const std::vector<std::vector<Sample>>& samples) {
    io::ContactSheet sheet;
    for (const auto& [name, directory] : models) sheet.column_captions.push_back(name);
    // Categories take turns in a prompt file: the offset moves on, so that the sheet shows all of them.
    const std::size_t step = std::max<std::size_t>(1, prompts.size() / sheet_rows);
    for (std::size_t row = 0; row < sheet_rows && row * step + row % step < prompts.size(); ++row) {
        const std::size_t i = row * step + row % step;
        sheet.rows.emplace_back();
        for (const auto& of_model : samples) sheet.rows.back().push_back(&of_model[i].picture);
        sheet.row_captions.push_back(prompts[i].text);
    }
    io::write_png(path, io::contact_sheet(sheet));
}

}  // namespace

int run_evaluate(const RunDirectory& run, const config::Config& config, const Models& models, std::int64_t limit, comm::Communicator& world) {
    Json summary{{"models", Json::object()}, {"elo", Json::object()}};
    std::vector<eval::Outcome> outcomes;
    std::map<std::string, std::pair<std::vector<Prompt>, std::vector<std::vector<Sample>>>> by_task;
    Context c{run, config, "", 1, &world};
    for (const auto& [name, directory] : models) {
        pipeline::Pipeline model(c.model(), directory);  // one at a time in memory
        Json& entry = summary["models"][name] = Json::object();
        for (const std::string& task : config.tasks()) {
            c.task = task;
            auto& [prompts, all] = by_task[task];
            if (prompts.empty()) {
                prompts = read_prompts(config.text("task." + task + ".heldout"));
                if (limit > 0 && static_cast<std::int64_t>(prompts.size()) > limit) prompts.resize(static_cast<std::size_t>(limit));
            }
            const rl::SamplingSpec spec = c.sampling(model);
            std::vector<std::pair<std::size_t, Sample>> mine;
            for (std::size_t i = 0; i < prompts.size(); ++i)
                if (c.is_mine(i)) mine.emplace_back(i, sample_prompt(model, c, spec, prompts[i]));
            std::vector<Sample> samples(prompts.size());
            for (const auto& part : world.gather(pack(mine))) unpack(part, samples);
            entry.update(summarise(samples, prompts, task));
            all.push_back(std::move(samples));
        }
    }
    if (!world.is_root()) return 0;
    for (const auto& [task, data] : by_task) {
        const auto& [prompts, all] = data;
        for (std::size_t i = 0; i < prompts.size(); ++i)
            for (std::size_t a = 0; a < all.size(); ++a)
                for (std::size_t b = a + 1; b < all.size(); ++b) {
                    const double x = all[a][i].total(), y = all[b][i].total();
                    outcomes.push_back({static_cast<int>(a), static_cast<int>(b), x > y ? 1.0 : x < y ? 0.0 : 0.5,
                                        task_number(task) ^ prompts[i].number});
                }
    }
    if (models.size() > 1) {
        const auto elo = eval::elo_table({}, static_cast<int>(models.size()), outcomes);
        for (std::size_t m = 0; m < models.size(); ++m)
            summary["elo"][models[m].first] = {{"elo", elo.entries[m].elo}, {"low", elo.entries[m].low}, {"high", elo.entries[m].high}};
    }
    const auto directory = run.root / "eval";
    io::publish_directory(directory, [&](const std::filesystem::path& temporary) {
        io::publish_text(temporary / "summary.json", summary.dump(1) + "\n");
        io::Manifest manifest = c.new_manifest("evaluate");
        manifest.task = "";
        manifest.outputs["summary.json"] = {};
        for (const auto& [task, data] : by_task) {
            const std::string sheet = "contact-" + task + ".png";
            write_sheet(temporary / sheet, models, data.first, data.second);
            manifest.outputs[sheet] = {};
        }
        io::publish_manifest(temporary, manifest);
    });
    // The table: one line a dimension, one column a model.
    std::map<std::string, bool> names;
    for (const auto& [model, entry] : summary["models"].items())
        for (const auto& [name, value] : entry.items())
            if (std::count(name.begin(), name.end(), '/') == 1) names[name] = true;
    std::cout << fmt::format("{:<22}", "");
    for (const auto& [name, path] : models) std::cout << fmt::format("{:>26}", name);
    std::cout << '\n';
    for (const auto& [name, unused] : names) {
        std::cout << fmt::format("{:<22}", name);
        for (const auto& [model, path] : models) {
            const Json& v = summary["models"][model][name];
            std::cout << fmt::format("{:>26}", fmt::format("{:.2f} [{:.2f}, {:.2f}]", v["mean"].get<double>(), v["low"].get<double>(), v["high"].get<double>()));
        }
        std::cout << '\n';
    }
    std::cout << (directory / "summary.json").string() << '\n';
    return 0;
}

}  // namespace atelier::stage
