#include "io/trajectory_index.hpp"

#include <algorithm>
#include <cstring>
#include <map>

#include "io/hdf5.hpp"
#include "io/publish.hpp"
#include "io/trajectory.hpp"

namespace atelier::io {
namespace {

using hdf5::File;

/// Dataset names below a group, relative to it, and how many files have them.
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

/// A dataset that an index stores itself, put together from its shards'.
struct Column {
    DType dtype = DType::f32;
    Shape shape;
    std::vector<std::byte> bytes;
    std::size_t shards = 0;  ///< that have it
};

/// What an index is made of: of shards, or of indices.
struct Parts {
    TrajectoryPrompts prompts;                               ///< texts: of shards alone
    std::int64_t prompt_count = 0;
    std::vector<std::pair<std::string, std::string>> links;  ///< reference pictures: file, name in it
    std::vector<std::uint32_t> picture_prompt;
    struct Shape {
        std::vector<std::string> files;
        std::map<std::string, std::size_t> datasets;  ///< how many files have them
        std::map<std::string, Column> columns;
        std::vector<std::uint32_t> prompt;  ///< numbers in this index
    };
    std::map<std::string, Shape> shapes;  ///< by group
};

/// `axes`: 1 for a number a sample, 2 for a row.
template <typename T>
void append(Parts::Shape& shape, const std::string& name, const std::vector<T>& values, std::int64_t samples, int axes = 1) {
    Column& c = shape.columns[name];
    const std::int64_t row = samples == 0 ? 0 : static_cast<std::int64_t>(values.size()) / samples;
    if (c.shards++ == 0) c.dtype = DTypeOf<T>::value, c.shape = axes == 1 ? Shape{0} : Shape{0, row};
    ATELIER_CHECK_INPUT(axes == 1 || c.shape[1] == row, "{}: {} has {} numbers a sample, {} in {}", shape.files.back(), name, row, c.shape[1],
                        shape.files.front());
    c.shape = axes == 1 ? Shape{c.shape[0] + samples} : Shape{c.shape[0] + samples, row};
    const auto* begin = reinterpret_cast<const std::byte*>(values.data());
    c.bytes.insert(c.bytes.end(), begin, begin + values.size() * sizeof(T));
}

void add_columns(Parts::Shape& shape, const TrajectorySamples& s) {
    const std::int64_t n = s.samples();
    append(shape, "sample_id", s.sample_id, n);
    append(shape, "member", s.member, n);
    append(shape, "noise_key", s.noise_key, n, 2);
    append(shape, "sigma", s.sigma, n, 2);
    append(shape, "is_sde", s.is_sde, n, 2);
    append(shape, "trained_step", s.trained_step, n, 2);
    append(shape, "log_prob", s.log_prob, n, 2);
    if (!s.log_prob_guided.empty()) append(shape, "log_prob_guided", s.log_prob_guided, n, 2);
    append(shape, "status", s.status, n);
    if (!s.reward.empty()) {
        append(shape, "total", s.total, n);
        append(shape, "advantage", s.advantage, n);
    }
    for (const auto& [scorer, columns] : {std::pair(std::string("reward/"), &s.reward), std::pair(std::string("truth/"), &s.truth)})
        for (const auto& [dimension, c] : *columns) {
            append(shape, scorer + dimension + "/score", c.score, n);
            append(shape, scorer + dimension + "/present", c.present, n);
            append(shape, scorer + dimension + "/seconds", c.seconds, n);
        }
}

void add_shard(Parts& parts, const std::filesystem::path& directory, const std::string& name) {
    const auto shard = read_trajectory(directory / name, {}, TrajectoryParts::scores);
    const auto first = static_cast<std::uint32_t>(parts.prompt_count);
    const auto append_texts = [](std::vector<std::string>& to, const std::vector<std::string>& from) { to.insert(to.end(), from.begin(), from.end()); };
    append_texts(parts.prompts.id, shard.prompts.id);
    append_texts(parts.prompts.text, shard.prompts.text);
    append_texts(parts.prompts.negative, shard.prompts.negative);
    append_texts(parts.prompts.category, shard.prompts.category);
    append_texts(parts.prompts.task, shard.prompts.task);
    append_texts(parts.prompts.attributes, shard.prompts.attributes);
    parts.prompt_count += static_cast<std::int64_t>(shard.prompts.id.size());
    for (std::size_t i = 0; i < shard.prompts.images.size(); ++i) {
        parts.links.emplace_back(name, fmt::format("/prompts/images/{}", i));
        parts.picture_prompt.push_back(first + shard.prompts.images[i].prompt);
    }
    const File file = File::open(directory / name);
    for (const TrajectorySamples& s : shard.shapes) {
        const std::string group = fmt::format("/shape-{}x{}", s.height, s.width);
        Parts::Shape& shape = parts.shapes[group];
        shape.files.push_back(name);
        count_datasets(file, group, "", shape.datasets);
        add_columns(shape, s);
        for (const std::uint32_t p : s.prompt) shape.prompt.push_back(first + p);
    }
}

void add_index(Parts& parts, const std::filesystem::path& directory, const std::string& name) {
    const File file = File::open(directory / name);
    const auto first = static_cast<std::uint32_t>(parts.prompt_count);
    parts.prompt_count += file.extents("/prompts/id").at(0);
    const auto owner = file.read<std::uint32_t>("/prompts/image_prompt", {-1});
    for (std::size_t i = 0; i < owner.size(); ++i) {
        parts.links.emplace_back(name, fmt::format("/prompts/images/{}", i));
        parts.picture_prompt.push_back(first + owner[i]);
    }
    for (const std::string& child : file.children("/")) {
        if (!child.starts_with("shape-")) continue;
        const std::string group = "/" + child;
        Parts::Shape& shape = parts.shapes[group];
        shape.files.push_back(name);
        count_datasets(file, group, "", shape.datasets);
        for (const std::uint32_t p : file.read<std::uint32_t>(group + "/prompt", {-1})) shape.prompt.push_back(first + p);
    }
}

void write_header(File& out, const File& of) {
    out.set_attribute("/", "schema", std::string(TrajectoryShard::schema));
    out.set_attribute("/", "schema_version", TrajectoryShard::schema_version);
    for (const char* name : {"run_id", "stage", "task", "sampler", "guidance_train", "log_prob", "config_hash", "model_hash", "code_version",
                             "created_utc"})
        out.set_attribute("/", name, of.text_attribute("/", name));
    for (const char* name : {"iteration", "world_size"}) out.set_attribute("/", name, of.integer_attribute("/", name));
    out.set_attribute("/", "rank", std::int64_t{0});
    for (const char* name : {"eta", "guidance_scale"}) out.set_attribute("/", name, of.number_attribute("/", name));
}

void write_shape(File& out, const std::string& group, const Parts::Shape& shape) {
    const std::size_t all = shape.files.size();
    out.write(group + "/prompt", Tensor::of(shape.prompt.data(), {static_cast<std::int64_t>(shape.prompt.size())}));
    for (const auto& [name, c] : shape.columns)
        if (c.shards == all) out.write(group + "/" + name, Tensor(const_cast<std::byte*>(c.bytes.data()), c.dtype, c.shape));
    for (const auto& [name, count] : shape.datasets)
        if (name != "prompt" && count == all && !shape.columns.contains(name)) out.write_virtual(group + "/" + name, shape.files);
}

/// `files`: shards, or indices of them.
void publish_index(const std::filesystem::path& directory, const std::string& name, std::span<const std::string> files, bool of_indices) {
    Parts parts;
    for (const std::string& file : files) of_indices ? add_index(parts, directory, file) : add_shard(parts, directory, file);
    publish_file(directory / name, [&](const std::filesystem::path& temporary) {
        File out = File::create(temporary);
        write_header(out, File::open(directory / files[0]));
        const std::pair<const char*, const std::vector<std::string>*> texts[] = {
            {"id", &parts.prompts.id},           {"text", &parts.prompts.text}, {"negative", &parts.prompts.negative},
            {"category", &parts.prompts.category}, {"task", &parts.prompts.task}, {"attributes", &parts.prompts.attributes}};
        for (const auto& [column, values] : texts) {
            if (of_indices) out.write_virtual(std::string("/prompts/") + column, files);
            else out.write_strings(std::string("/prompts/") + column, *values);
        }
        out.write("/prompts/image_prompt", Tensor::of(parts.picture_prompt.data(), {static_cast<std::int64_t>(parts.picture_prompt.size())}));
        for (std::size_t i = 0; i < parts.links.size(); ++i)
            out.write_link(fmt::format("/prompts/images/{}", i), parts.links[i].first, parts.links[i].second);
        for (const auto& [group, shape] : parts.shapes) write_shape(out, group, shape);
        out.close();
    });
}

std::size_t samples_in(const std::filesystem::path& shard) {
    const File file = File::open(shard);
    std::int64_t samples = 0;
    for (const std::string& child : file.children("/"))
        if (child.starts_with("shape-")) samples += file.extents("/" + child + "/sample_id").at(0);
    return static_cast<std::size_t>(samples);
}

}  // namespace

std::vector<std::string> publish_trajectory_index(const std::filesystem::path& directory, std::span<const std::string> shards,
                                                  std::size_t most_shards, std::size_t most_samples) {
    ATELIER_CHECK(!shards.empty(), "an index of no shards");
    std::vector<std::size_t> ends;  // of each index's shards
    for (std::size_t i = 0, begin = 0, samples = 0; i < shards.size(); ++i) {
        const std::size_t own = samples_in(directory / shards[i]);
        if (i > begin && (i - begin == most_shards || samples + own > most_samples)) ends.push_back(i), begin = i, samples = 0;
        samples += own;
    }
    ends.push_back(shards.size());
    std::vector<std::string> indices;
    if (ends.size() > 1)
        for (std::size_t i = 0, begin = 0; i < ends.size(); begin = ends[i++]) {
            indices.push_back(fmt::format("trajectories-{:05}.h5", i));
            publish_index(directory, indices.back(), shards.subspan(begin, ends[i] - begin), false);
        }
    publish_index(directory, trajectory_index_name, indices.empty() ? shards : std::span<const std::string>(indices), !indices.empty());
    indices.push_back(trajectory_index_name);
    return indices;
}

}  // namespace atelier::io
