#include "io/trajectory.hpp"

#include <charconv>

#include "io/hdf5.hpp"
#include "io/publish.hpp"

namespace atelier::io {
namespace {

using hdf5::File;

template <typename T>
void put(File& file, const std::string& name, const std::vector<T>& values, Shape shape) {
    ATELIER_CHECK(static_cast<std::int64_t>(values.size()) == shape.elements(), "dataset {} of shape {} was given {} numbers", name,
                  shape.str(), values.size());
    file.write(name, Tensor::of(values.data(), shape));
}

void write_prompts(File& file, const TrajectoryPrompts& p) {
    file.make_group("/prompts");
    const std::pair<const char*, const std::vector<std::string>*> columns[] = {
        {"id", &p.id}, {"text", &p.text}, {"negative", &p.negative}, {"category", &p.category}, {"task", &p.task},
        {"attributes", &p.attributes}};
    for (const auto& [name, column] : columns) {
        ATELIER_CHECK(column->size() == p.id.size(), "prompt column {} has {} rows of {}", name, column->size(), p.id.size());
        file.write_strings(std::string("/prompts/") + name, *column);
    }
    std::vector<std::uint32_t> owner;
    for (const ReferenceImage& image : p.images) owner.push_back(image.prompt);
    put(file, "/prompts/image_prompt", owner, {static_cast<std::int64_t>(owner.size())});
    for (std::size_t i = 0; i < p.images.size(); ++i)
        put(file, fmt::format("/prompts/images/{}", i), p.images[i].rgba, {p.images[i].height, p.images[i].width, 4});
}

void write_columns(File& file, const std::string& group, const std::map<std::string, RewardColumn>& columns, std::int64_t n) {
    for (const auto& [name, column] : columns) {
        const std::string r = group + name + "/";
        put(file, r + "score", column.score, {n});
        put(file, r + "present", column.present, {n});
        put(file, r + "seconds", column.seconds, {n});
        ATELIER_CHECK(static_cast<std::int64_t>(column.reason.size()) == n, "{}reason has {} rows of {}", r, column.reason.size(), n);
        file.write_strings(r + "reason", column.reason);
    }
}

std::map<std::string, RewardColumn> read_columns(const File& file, const std::string& group, std::int64_t n) {
    std::map<std::string, RewardColumn> columns;
    if (!file.exists(group)) return columns;
    for (const std::string& name : file.children(group)) {
        const std::string r = group + "/" + name + "/";
        RewardColumn& column = columns[name];
        column.score = file.read<float>(r + "score", {n});
        column.present = file.read<std::uint8_t>(r + "present", {n});
        column.seconds = file.read<float>(r + "seconds", {n});
        column.reason = file.read_strings(r + "reason");
        ATELIER_CHECK_INPUT(static_cast<std::int64_t>(column.reason.size()) == n, "{}: {}reason has {} rows of {}",
                            file.path().string(), r, column.reason.size(), n);
    }
    return columns;
}

void write_samples(File& file, const TrajectorySamples& s) {
    const std::string g = fmt::format("/shape-{}x{}/", s.height, s.width);
    const std::int64_t n = s.samples(), l = s.tokens(), c = s.channels, k = s.trained;
    file.make_group(g.substr(0, g.size() - 1));
    put(file, g + "sample_id", s.sample_id, {n});
    put(file, g + "prompt", s.prompt, {n});
    put(file, g + "member", s.member, {n});
    put(file, g + "noise_key", s.noise_key, {n, 2});
    put(file, g + "sigma", s.sigma, {n, s.steps + 1});
    put(file, g + "is_sde", s.is_sde, {n, s.steps});
    put(file, g + "trained_step", s.trained_step, {n, k});
    put(file, g + "x", s.x, {n, k, l, c});
    put(file, g + "x_next", s.x_next, {n, k, l, c});
    put(file, g + "log_prob", s.log_prob, {n, k});
    if (!s.log_prob_guided.empty()) put(file, g + "log_prob_guided", s.log_prob_guided, {n, k});
    if (!s.teacher_velocity.empty()) put(file, g + "teacher_velocity", s.teacher_velocity, {n, k, l, c});
    put(file, g + "latents", s.latents, {n, l, c});
    put(file, g + "picture", s.picture, {n, s.picture_height, s.picture_width, 4});
    write_columns(file, g + "reward/", s.reward, n);
    write_columns(file, g + "truth/", s.truth, n);
    if (!s.reward.empty()) {
        put(file, g + "total", s.total, {n});
        put(file, g + "advantage", s.advantage, {n});
    }
    put(file, g + "status", s.status, {n});
}

TrajectoryPrompts read_prompts(const File& file, bool with_pixels) {
    TrajectoryPrompts p;
    p.id = file.read_strings("/prompts/id");
    const std::pair<const char*, std::vector<std::string>*> columns[] = {
        {"text", &p.text}, {"negative", &p.negative}, {"category", &p.category}, {"task", &p.task}, {"attributes", &p.attributes}};
    for (const auto& [name, column] : columns) {
        *column = file.read_strings(std::string("/prompts/") + name);
        ATELIER_CHECK_INPUT(column->size() == p.id.size(), "{}: /prompts/{} has {} rows, /prompts/id {}", file.path().string(), name,
                            column->size(), p.id.size());
    }
    const auto owner = file.read<std::uint32_t>("/prompts/image_prompt", {-1});
    for (std::size_t i = 0; i < owner.size(); ++i) {
        const std::string name = fmt::format("/prompts/images/{}", i);
        ReferenceImage image;
        image.prompt = owner[i];
        ATELIER_CHECK_INPUT(owner[i] < p.id.size(), "{}: /prompts/image_prompt names prompt {} of {}", file.path().string(), owner[i],
                            p.id.size());
        if (with_pixels) image.rgba = file.read<std::uint8_t>(name, {-1, -1, 4});
        const auto extents = file.extents(name, {-1, -1, 4});
        image.height = extents[0];
        image.width = extents[1];
        p.images.push_back(std::move(image));
    }
    return p;
}

bool has_states(TrajectoryParts parts) { return parts == TrajectoryParts::all || parts == TrajectoryParts::training; }

TrajectorySamples read_samples(const File& file, const std::string& group, std::size_t prompts, TrajectoryParts parts) {
    TrajectorySamples s;
    const std::string text = group.substr(std::string("shape-").size());
    const auto cross = text.find('x');
    const auto number = [&](std::string_view part, std::int64_t& out) {
        const auto r = std::from_chars(part.data(), part.data() + part.size(), out);
        return r.ec == std::errc() && r.ptr == part.data() + part.size() && out > 0;
    };
    ATELIER_CHECK_INPUT(cross != std::string::npos && number(std::string_view(text).substr(0, cross), s.height) &&
                            number(std::string_view(text).substr(cross + 1), s.width),
                        "{}: group {} names no latent shape", file.path().string(), group);
    const std::string g = "/" + group + "/";
    s.sample_id = file.read<std::uint64_t>(g + "sample_id", {-1});
    const std::int64_t n = s.samples(), l = s.tokens();
    const auto latents = file.extents(g + "latents");
    ATELIER_CHECK_INPUT(latents.size() == 3, "{}: dataset {}latents must have 3 axes, found {}", file.path().string(), g, latents.size());
    s.channels = latents[2];
    const bool has_pictures = parts == TrajectoryParts::all || parts == TrajectoryParts::summary;
    if (has_pictures) s.latents = file.read<float>(g + "latents", {n, l, s.channels});
    s.is_sde = file.read<std::uint8_t>(g + "is_sde", {n, -1});
    s.steps = file.extents(g + "is_sde")[1];
    s.trained_step = file.read<std::uint32_t>(g + "trained_step", {n, -1});
    s.trained = file.extents(g + "trained_step")[1];
    s.prompt = file.read<std::uint32_t>(g + "prompt", {n});
    s.member = file.read<std::uint32_t>(g + "member", {n});
    s.noise_key = file.read<std::uint64_t>(g + "noise_key", {n, 2});
    s.sigma = file.read<float>(g + "sigma", {n, s.steps + 1});
    if (has_states(parts)) {
        s.x = file.read<float>(g + "x", {n, s.trained, l, s.channels});
        s.x_next = file.read<float>(g + "x_next", {n, s.trained, l, s.channels});
        if (file.exists(g + "teacher_velocity")) s.teacher_velocity = file.read<float>(g + "teacher_velocity", {n, s.trained, l, s.channels});
    }
    s.log_prob = file.read<float>(g + "log_prob", {n, s.trained});
    if (file.exists(g + "log_prob_guided")) s.log_prob_guided = file.read<float>(g + "log_prob_guided", {n, s.trained});
    if (has_pictures) s.picture = file.read<std::uint8_t>(g + "picture", {n, -1, -1, 4});
    const auto picture = file.extents(g + "picture", {n, -1, -1, 4});
    s.picture_height = picture[1];
    s.picture_width = picture[2];
    s.status = file.read<std::uint8_t>(g + "status", {n});
    s.reward = read_columns(file, g + "reward", n);
    s.truth = read_columns(file, g + "truth", n);
    if (!s.reward.empty()) {
        s.total = file.read<float>(g + "total", {n});
        s.advantage = file.read<float>(g + "advantage", {n});
    }
    for (std::uint32_t p : s.prompt)
        ATELIER_CHECK_INPUT(p < prompts, "{}: {}prompt names prompt {} of {}", file.path().string(), g, p, prompts);
    for (std::uint32_t step : s.trained_step)
        ATELIER_CHECK_INPUT(step < s.steps, "{}: {}trained_step names step {} of {}", file.path().string(), g, step, s.steps);
    return s;
}

}  // namespace

void drop_states(TrajectorySamples& s) {
    s.trained = 0;
    s.trained_step.clear();
    for (auto* values : {&s.x, &s.x_next, &s.log_prob, &s.log_prob_guided, &s.teacher_velocity}) values->clear();
}

void write_trajectory(const std::filesystem::path& path, const TrajectoryShard& shard) {
    File file = File::create(path);
    const TrajectoryHeader& h = shard.header;
    file.set_attribute("/", "schema", std::string(TrajectoryShard::schema));
    file.set_attribute("/", "schema_version", TrajectoryShard::schema_version);
    const std::pair<const char*, const std::string*> texts[] = {
        {"run_id", &h.run_id}, {"stage", &h.stage}, {"task", &h.task}, {"sampler", &h.sampler}, {"guidance_train", &h.guidance_train},
        {"log_prob", &h.log_prob}, {"config_hash", &h.config_hash}, {"model_hash", &h.model_hash}, {"code_version", &h.code_version},
        {"created_utc", &h.created_utc}, {"inputs_hash", &h.inputs_hash}};
    for (const auto& [name, value] : texts) file.set_attribute("/", name, *value);
    file.set_attribute("/", "iteration", h.iteration);
    file.set_attribute("/", "rank", h.rank);
    file.set_attribute("/", "world_size", h.world_size);
    file.set_attribute("/", "eta", h.eta);
    file.set_attribute("/", "guidance_scale", h.guidance_scale);
    write_prompts(file, shard.prompts);
    for (const TrajectorySamples& s : shard.shapes) write_samples(file, s);
    file.close();
}

TrajectoryShard read_trajectory(const std::filesystem::path& path, const std::string& config_hash, TrajectoryParts parts) {
    if (has_states(parts)) read_ahead(path);  // they are most of it
    const File file = File::open(path);
    const std::string schema = file.text_attribute("/", "schema");
    const std::int64_t version = file.integer_attribute("/", "schema_version");
    ATELIER_CHECK_INPUT(schema == TrajectoryShard::schema && version == TrajectoryShard::schema_version,
                        "{}: schema {} version {} expected, found {} version {}", path.string(), TrajectoryShard::schema,
                        TrajectoryShard::schema_version, schema, version);
    TrajectoryShard shard;
    TrajectoryHeader& h = shard.header;
    const std::pair<const char*, std::string*> texts[] = {
        {"run_id", &h.run_id}, {"stage", &h.stage}, {"task", &h.task}, {"sampler", &h.sampler}, {"guidance_train", &h.guidance_train},
        {"log_prob", &h.log_prob}, {"config_hash", &h.config_hash}, {"model_hash", &h.model_hash}, {"code_version", &h.code_version},
        {"created_utc", &h.created_utc}};
    for (const auto& [name, value] : texts) *value = file.text_attribute("/", name);
    ATELIER_CHECK_INPUT(config_hash.empty() || h.config_hash == config_hash,
                        "{} was made with another configuration: hash {} expected, found {}", path.string(), config_hash, h.config_hash);
    if (file.has_attribute("/", "inputs_hash")) h.inputs_hash = file.text_attribute("/", "inputs_hash");
    h.iteration = file.integer_attribute("/", "iteration");
    h.rank = file.integer_attribute("/", "rank");
    h.world_size = file.integer_attribute("/", "world_size");
    h.eta = file.number_attribute("/", "eta");
    h.guidance_scale = file.number_attribute("/", "guidance_scale");
    shard.prompts = read_prompts(file, parts != TrajectoryParts::scores);
    for (const std::string& child : file.children("/"))
        if (child.starts_with("shape-")) shard.shapes.push_back(read_samples(file, child, shard.prompts.id.size(), parts));
    return shard;
}

std::vector<std::uint8_t> read_picture(const std::filesystem::path& path, const TrajectorySamples& shape, std::int64_t sample) {
    const File file = File::open(path);
    const std::string name = fmt::format("/shape-{}x{}/picture", shape.height, shape.width);
    file.extents(name, {shape.samples(), shape.picture_height, shape.picture_width, 4});
    return file.read_rows<std::uint8_t>(name, sample, 1);
}

}  // namespace atelier::io
