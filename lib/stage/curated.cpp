#include "stage/curated.hpp"

#include "io/hdf5.hpp"

namespace atelier::stage {
namespace {

constexpr const char* schema_name = "atelier.prompts";
constexpr std::int64_t schema_version = 1;

template <typename T>
Tensor column(const std::vector<T>& values) {
    return Tensor::of(values.data(), {static_cast<std::int64_t>(values.size())});
}

}  // namespace

std::vector<std::uint64_t> Curated::kept_numbers() const {
    std::vector<std::uint64_t> numbers;
    for (std::size_t i = 0; i < number.size(); ++i)
        if (kept[i] != 0) numbers.push_back(number[i]);
    return numbers;
}

void write_curated(const std::filesystem::path& path, const Curated& c) {
    auto file = io::hdf5::File::create(path);
    file.set_attribute("/", "schema", std::string(schema_name));
    file.set_attribute("/", "schema_version", schema_version);
    file.set_attribute("/", "config_hash", c.config_hash);
    file.set_attribute("/", "pool_hash", c.pool_hash);
    file.write("/number", column(c.number));
    file.write_strings("/id", c.id);
    file.write_strings("/text", c.text);
    file.write_strings("/category", c.category);
    file.write_strings("/verdict", c.verdict);
    file.write("/kept", column(c.kept));
    file.write("/mean", column(c.mean));
    file.write("/range", column(c.range));
    for (const auto& [category, weights] : c.weights) {
        std::vector<std::string> names;
        std::vector<float> weight, spread;
        for (const auto& [name, value] : weights) {
            names.push_back(name);
            weight.push_back(static_cast<float>(value));
            spread.push_back(static_cast<float>(c.mean_std.at(category).at(name)));
        }
        file.write_strings("/weights/" + category + "/dimension", names);
        file.write("/weights/" + category + "/weight", column(weight));
        file.write("/weights/" + category + "/mean_std", column(spread));
    }
    file.close();
}

Curated read_curated(const std::filesystem::path& path) {
    const auto file = io::hdf5::File::open(path);
    ATELIER_CHECK_INPUT(file.text_attribute("/", "schema") == schema_name &&
                            file.integer_attribute("/", "schema_version") == schema_version,
                        "{} is no file of curated prompts of version {}", path.string(),
                        schema_version);
    Curated c;
    c.config_hash = file.text_attribute("/", "config_hash");
    c.pool_hash = file.text_attribute("/", "pool_hash");
    c.number = file.read<std::uint64_t>("/number", {-1});
    const auto n = static_cast<std::int64_t>(c.number.size());
    c.id = file.read_strings("/id");
    c.text = file.read_strings("/text");
    c.category = file.read_strings("/category");
    c.verdict = file.read_strings("/verdict");
    c.kept = file.read<std::uint8_t>("/kept", {n});
    c.mean = file.read<float>("/mean", {n});
    c.range = file.read<float>("/range", {n});
    for (const auto* texts : {&c.id, &c.text, &c.category, &c.verdict})
        ATELIER_CHECK_INPUT(static_cast<std::int64_t>(texts->size()) == n,
                            "{}: a column of {} texts beside {} prompts", path.string(),
                            texts->size(), n);
    if (!file.exists("/weights")) return c;
    for (const std::string& category : file.children("/weights")) {
        const std::string at = "/weights/" + category;
        const auto names = file.read_strings(at + "/dimension");
        const auto k = static_cast<std::int64_t>(names.size());
        const auto weight = file.read<float>(at + "/weight", {k}),
                   spread = file.read<float>(at + "/mean_std", {k});
        for (std::size_t i = 0; i < names.size(); ++i) {
            c.weights[category][names[i]] = weight[i];
            c.mean_std[category][names[i]] = spread[i];
        }
    }
    return c;
}

}  // namespace atelier::stage
