// Files of a large run, made by a policy that only pretends, for tests/bench/load.py.
//   load prompts N FILE              a pool of N prompts
//   load groups RUN TASK             the groups that curation would draw for the whole pool, scored at random, in RUN/prompts/TASK
//   load shards DIRECTORY N SAMPLES  N shards of SAMPLES each
//   load index DIRECTORY             publishes their index
#include <fmt/format.h>

#include <cstdlib>
#include <iostream>

#include "comm/run_main.hpp"
#include "config/config.hpp"
#include "core/philox.hpp"
#include "io/file_io.hpp"
#include "io/trajectory_index.hpp"
#include "stage/group_rollout.hpp"
#include "stage/schema.hpp"
#include "stage/scorers.hpp"

namespace {

using namespace atelier;
namespace fs = std::filesystem;

constexpr const char* categories[] = {"general", "portrait", "landscape", "typography"};

void write_prompts(std::size_t count, const fs::path& file) {
    std::string text;
    for (std::size_t i = 0; i < count; ++i)
        text += nlohmann::json{{"id", fmt::format("p{:07}", i)},
                               {"task", "t2i"},
                               {"category", categories[i % 4]},
                               {"text", fmt::format("{} blue squares left of a red circle on gray", i)},
                               {"attributes", nlohmann::json::object()}}
                    .dump() +
                "\n";
    io::write_text(file, text);
}

/// A group with the smallest latents and pictures.
io::TrajectorySamples group(std::size_t unit, std::size_t members, bool has_portrait) {
    io::TrajectorySamples s;
    s.height = s.width = 1, s.channels = 4, s.steps = 3, s.picture_height = s.picture_width = 16;
    Random random(random_key(1, RandomUse::test, unit));
    for (std::size_t m = 0; m < members; ++m) {
        s.sample_id.push_back(unit * members + m);
        s.prompt.push_back(0);
        s.member.push_back(static_cast<std::uint32_t>(m));
        s.noise_key.insert(s.noise_key.end(), {unit, m});
    }
    s.sigma.resize(members * 4), s.is_sde.resize(members * 3), s.latents.resize(members * 4), s.picture.resize(members * 1024);
    s.status.resize(members), s.total.resize(members), s.advantage.resize(members);
    for (const char* name : {"alignment", "aesthetics", "portrait"}) {
        if (!has_portrait && std::string(name) == "portrait") continue;
        io::RewardColumn& column = s.reward[name];
        for (std::size_t m = 0; m < members; ++m) column.score.push_back(1.0f + static_cast<float>(random.below(401)) / 100.0f);
        column.seconds.resize(members), column.present.assign(members, 1), column.reason.assign(members, "measured");
    }
    return s;
}

io::TrajectoryHeader header(const std::string& stage, const std::string& config_hash, const std::string& model_hash) {
    return {"run", stage, "t2i", "flow_sde", "conditional", "mean", config_hash, model_hash, stage::code_version(), io::utc_now(), 0, 0, 1, 0.7, 1.0};
}

void write_groups(const fs::path& run, const std::string& task, comm::Communicator& world) {
    const stage::Context c{{run}, config::Config::resolve(run / "config.toml", {}, stage::schema()), &world, task, 0};
    const auto prompts = stage::read_prompts(c.config.text("task." + task + ".train"), task, c.kind(task));
    auto h = header("curate", c.config.hash(), stage::weights_hash(*c.world, c.base_transformer()));
    const auto members = static_cast<std::size_t>(c.config.integer("curate.group_size"));
    io::make_directories(c.run.curation(task));
    const auto scorer = stage::scorer_inputs(c);
    for (std::size_t unit = 0; unit < prompts.size(); ++unit) {
        h.inputs_hash = stage::inputs_hash(scorer, std::span(&prompts[unit], 1));
        io::write_trajectory(c.run.curation(task) / stage::GroupRollout::shard_name(unit),
                             {h, stage::prompt_table(c, prompts[unit]), {group(unit, members, prompts[unit].category == "portrait")}});
    }
}

void write_shards(const fs::path& directory, std::size_t count, std::size_t samples) {
    io::make_directories(directory);
    for (std::size_t unit = 0; unit < count; ++unit) {
        io::TrajectoryPrompts p;
        p.id = {fmt::format("p{:07}", unit)}, p.text = {"two blue squares"}, p.negative = {""}, p.category = {"general"}, p.task = {"t2i"},
        p.attributes = {"{}"};
        io::write_trajectory(directory / stage::GroupRollout::shard_name(unit), {header("rollout", "config", "model"), p, {group(unit, samples, false)}});
    }
}

int run(comm::Communicator& world, int argc, char** argv) {
    const std::string what = argc < 3 ? "" : argv[1];
    if (what == "prompts" && argc == 4) write_prompts(std::strtoul(argv[2], nullptr, 10), argv[3]);
    else if (what == "groups" && argc == 4) write_groups(argv[2], argv[3], world);
    else if (what == "shards" && argc == 5) write_shards(argv[2], std::strtoul(argv[3], nullptr, 10), std::strtoul(argv[4], nullptr, 10));
    else if (what == "index" && argc == 3) {
        std::vector<std::string> names;
        for (const auto& entry : fs::directory_iterator(argv[2]))
            if (entry.path().filename().string().starts_with("shard-")) names.push_back(entry.path().filename().string());
        std::sort(names.begin(), names.end());
        io::publish_trajectory_index(argv[2], names);
    } else {
        ATELIER_FAIL(ErrorKind::usage, "see tests/bench/load.cpp");
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) { return comm::run_main(argc, argv, "load", run); }
