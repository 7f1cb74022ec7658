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

std::vector<std::uint64_t> kept_of(const std::vector<std::uint64_t>& number, const std::vector<std::uint8_t>& kept) {
    std::vector<std::uint64_t> numbers;
    for (std::size_t i = 0; i < number.size(); ++i)
        if (kept[i] != 0) numbers.push_back(number[i]);
    return numbers;
}

io::hdf5::File open_curated(const std::filesystem::path& path) {
    auto file = io::hdf5::File::open(path);
    ATELIER_CHECK_INPUT(file.text_attribute("/", "schema") == schema_name &&
                            file.integer_attribute("/", "schema_version") == schema_version,
                        "{} is no file of curated prompts of version {}", path.string(),
                        schema_version);
    return file;
}

/// A column of /weights/<category> by category and dimension.
CategoryWeights read_by_dimension(const io::hdf5::File& file, const std::string& column) {
    CategoryWeights values;
    if (!file.exists("/weights")) return values;
    for (const std::string& category : file.children("/weights")) {
        const std::string at = "/weights/" + category;
        const auto names = file.read_strings(at + "/dimension");
        const auto found = file.read<float>(at + "/" + column, {static_cast<std::int64_t>(names.size())});
        for (std::size_t i = 0; i < names.size(); ++i) values[category][names[i]] = found[i];
    }
    return values;
}

}  // namespace

std::vector<std::uint64_t> Curated::kept_numbers() const { return kept_of(number, kept); }

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
    const auto file = open_curated(path);
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
    c.weights = read_by_dimension(file, "weight");
    c.mean_std = read_by_dimension(file, "mean_std");
    return c;
}

Choice read_choice(const std::filesystem::path& path) {
    const auto file = open_curated(path);
    const auto number = file.read<std::uint64_t>("/number", {-1});
    const auto kept = file.read<std::uint8_t>("/kept", {static_cast<std::int64_t>(number.size())});
    return {file.text_attribute("/", "pool_hash"), kept_of(number, kept), read_by_dimension(file, "weight")};
}

}  // namespace atelier::stage
