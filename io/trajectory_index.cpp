#include "io/trajectory_index.hpp"

#include <algorithm>
#include <map>

#include "io/hdf5.hpp"
#include "io/publish.hpp"
#include "io/trajectory.hpp"

namespace atelier::io {
namespace {

using hdf5::File;

/// Dataset names below a group, relative to it, and how many shards have them.
void count_datasets(const File& file, const std::string& group, const std::string& prefix,
                    std::map<std::string, std::size_t>& counts) {
    for (const std::string& name : file.children(group)) {
        if (prefix.empty() && (name == "reward" || name == "truth")) {
            for (const std::string& dimension : file.children(group + "/" + name))
                count_datasets(file, group + "/" + name + "/" + dimension,
                               name + "/" + dimension + "/", counts);
            continue;
        }
        ++counts[prefix + name];
    }
}

}  // namespace

void publish_trajectory_index(const std::filesystem::path& directory,
                              std::span<const std::string> shards) {
    ATELIER_CHECK(!shards.empty(), "an index of no shards");
    TrajectoryPrompts prompts;
    std::map<std::string, std::map<std::string, std::size_t>>
        groups;  // shape group -> dataset -> shards that have it
    std::map<std::string, std::vector<std::string>> files;  // shape group -> shards
    std::map<std::string, std::vector<std::uint32_t>>
        prompt_of;  // shape group -> prompt numbers in the index
    std::vector<std::pair<std::string, std::string>> pictures;  // shard, name in it
    std::vector<std::uint32_t> picture_prompt;
    for (const std::string& name : shards) {
        const auto shard = read_trajectory(directory / name, {}, TrajectoryParts::scores);
        const auto first = static_cast<std::uint32_t>(prompts.id.size());
        const auto append = [](std::vector<std::string>& to, const std::vector<std::string>& from) {
            to.insert(to.end(), from.begin(), from.end());
        };
        append(prompts.id, shard.prompts.id);
        append(prompts.text, shard.prompts.text);
        append(prompts.negative, shard.prompts.negative);
        append(prompts.category, shard.prompts.category);
        append(prompts.task, shard.prompts.task);
        append(prompts.attributes, shard.prompts.attributes);
        for (std::size_t i = 0; i < shard.prompts.images.size(); ++i) {
            pictures.emplace_back(name, fmt::format("/prompts/images/{}", i));
            picture_prompt.push_back(first + shard.prompts.images[i].prompt);
        }
        const File file = File::open(directory / name);
        for (const TrajectorySamples& s : shard.shapes) {
            const std::string group = fmt::format("/shape-{}x{}", s.height, s.width);
            count_datasets(file, group, "", groups[group]);
            files[group].push_back(name);
            for (const std::uint32_t p : s.prompt) prompt_of[group].push_back(first + p);
        }
    }
    publish_file(directory / trajectory_index_name, [&](const std::filesystem::path& temporary) {
        File out = File::create(temporary);
        const File first = File::open(directory / shards[0]);
        out.set_attribute("/", "schema", std::string(TrajectoryShard::schema));
        out.set_attribute("/", "schema_version", TrajectoryShard::schema_version);
        for (const char* name : {"run_id", "stage", "task", "sampler", "guidance_train", "log_prob",
                                 "config_hash", "model_hash", "code_version", "created_utc"})
            out.set_attribute("/", name, first.text_attribute("/", name));
        for (const char* name : {"iteration", "world_size"})
            out.set_attribute("/", name, first.integer_attribute("/", name));
        out.set_attribute("/", "rank", std::int64_t{0});
        for (const char* name : {"eta", "guidance_scale"})
            out.set_attribute("/", name, first.number_attribute("/", name));
        const std::pair<const char*, const std::vector<std::string>*> texts[] = {
            {"id", &prompts.id},
            {"text", &prompts.text},
            {"negative", &prompts.negative},
            {"category", &prompts.category},
            {"task", &prompts.task},
            {"attributes", &prompts.attributes}};
        for (const auto& [name, column] : texts)
            out.write_strings(std::string("/prompts/") + name, *column);
        out.write(
            "/prompts/image_prompt",
            Tensor::of(picture_prompt.data(), {static_cast<std::int64_t>(picture_prompt.size())}));
        for (std::size_t i = 0; i < pictures.size(); ++i)
            out.write_link(fmt::format("/prompts/images/{}", i), pictures[i].first,
                           pictures[i].second);
        for (const auto& [group, datasets] : groups) {
            out.write(group + "/prompt",
                      Tensor::of(prompt_of[group].data(),
                                 {static_cast<std::int64_t>(prompt_of[group].size())}));
            for (const auto& [name, count] : datasets)
                if (name != "prompt" && count == files[group].size())
                    out.write_virtual(group + "/" + name, files[group]);
        }
        out.close();
    });
}

}  // namespace atelier::io
