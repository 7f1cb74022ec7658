#include "nn/lora_file.hpp"

#include <cmath>
#include <fstream>
#include <map>

#include "core/device.hpp"
#include "core/json.hpp"
#include "io/file_io.hpp"
#include "io/safetensors.hpp"

namespace atelier::nn {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr const char* metadata_key = "lora_adapter_metadata";
constexpr const char* peft_weights = "adapter_model.safetensors";
constexpr const char* peft_config = "adapter_config.json";
constexpr std::string_view down = ".lora_A.weight", up = ".lora_B.weight";
// As a pipeline, PEFT and the transformer alone name its modules.
constexpr std::string_view prefixes[] = {"transformer.", "base_model.model.", ""};

/// The weights' file of what the user named.
fs::path weights_file(const fs::path& path) {
    if (!fs::is_directory(path)) return path;
    for (const char* name : {lora_file_name, peft_weights})
        if (fs::exists(path / name)) return path / name;
    ATELIER_FAIL(ErrorKind::input, "{} holds neither {} nor {}", path.string(), lora_file_name, peft_weights);
}

/// The prefix that every tensor of the file has.
std::string prefix_of(const io::Safetensors& file) {
    for (const std::string_view prefix : prefixes) {
        bool all = !file.tensors().empty();
        for (const auto& [name, stored] : file.tensors()) all = all && name.starts_with(prefix);
        if (all) return std::string(prefix);
    }
    ATELIER_FAIL(ErrorKind::input, "{} holds no tensors", file.path().string());
}

/// The adapter's configuration as PEFT writes it, from the file's metadata or from the file beside it.
Json read_settings(const io::Safetensors& file) {
    const std::string path = file.path().string();
    Json json;
    if (const auto found = file.metadata().find(metadata_key); found != file.metadata().end()) {
        const Json all = parse_json(found->second, fmt::format("{}: {}", path, metadata_key));
        ATELIER_CHECK_INPUT(all.is_object(), "{}: {} is not a JSON object", path, metadata_key);
        json = Json::object();
        for (const auto& [key, value] : all.items())
            json[key.starts_with("transformer.") ? key.substr(prefixes[0].size()) : key] = value;
    } else {
        const fs::path beside = file.path().parent_path() / peft_config;
        ATELIER_CHECK_INPUT(fs::exists(beside), "{}: no {} in the file's metadata and no {} beside it, so rank and alpha are unknown", path,
                            metadata_key, peft_config);
        json = read_json(beside);
        ATELIER_CHECK_INPUT(json.is_object(), "{} is not a JSON object", beside.string());
    }
    ATELIER_CHECK_INPUT(json.contains("lora_alpha") && json["lora_alpha"].is_number() && json.contains("r") &&
                            json["r"].is_number_integer() && json["r"].get<std::int64_t>() > 0 && json["lora_alpha"].get<double>() > 0,
                        "{}: its configuration has no positive numbers r and lora_alpha", path);
    for (const char* flag : {"use_dora", "use_rslora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out"})
        ATELIER_CHECK_INPUT(!json.contains(flag) || json[flag].is_null() || json[flag] == false, "{}: {} = {} is not supported", path, flag,
                            json[flag].dump());
    for (const char* pattern : {"rank_pattern", "alpha_pattern"})
        ATELIER_CHECK_INPUT(!json.contains(pattern) || json[pattern].is_null() || json[pattern].empty(),
                            "{}: {} = {} is not supported", path, pattern, json[pattern].dump());
    return json;
}

void read_matrix(const io::Safetensors& file, const std::string& name, const Tensor& to) {
    io::to_f32(file.at(name), to.f32());
    for (std::int64_t i = 0; i < to.elements(); ++i)
        ATELIER_CHECK_INPUT(std::isfinite(to.f32()[i]), "{}: tensor {} holds {} at element {}", file.path().string(), name, to.f32()[i], i);
}

Json settings_of(const LoraTable& table) {
    Json modules = Json::array();
    for (const int row : table.adapted()) {
        const std::string& name = table.model().spec(row).name;
        modules.push_back(name.substr(0, name.size() - std::string_view(".weight").size()));
    }
    return {{"peft_type", "LORA"},  {"r", table.rank()},    {"lora_alpha", table.config().alpha}, {"target_modules", modules},
            {"bias", "none"},       {"lora_dropout", 0.0}, {"use_dora", false},                  {"use_rslora", false},
            {"fan_in_fan_out", false}, {"inference_mode", true}};
}

}  // namespace

LoraAdapter::LoraAdapter(const ParameterTable& model, const LoraConfig& config, Device device)
    : table_(std::make_unique<LoraTable>(model, config)),
      arena_(Arena::of("adapter", [&](Arena& arena) { store_ = std::make_unique<LoraStore>(*table_, arena, device); })) {}

LoraAdapter LoraAdapter::copy_to(Device device) const {
    LoraAdapter copy(table_->model(), table_->config(), device);
    transfer(store_->values().flat(), copy.store().values().flat());
    return copy;
}

LoraAdapter load_lora(const fs::path& path, const ParameterTable& model) {
    const io::Safetensors file = io::Safetensors::open(weights_file(path));
    const std::string where = file.path().string(), prefix = prefix_of(file);
    const Json settings = read_settings(file);
    LoraConfig config{settings["r"].get<std::int64_t>(), settings["lora_alpha"].get<double>(), {}};
    // Everything is checked before any memory is taken.
    for (const auto& [name, stored] : file.tensors()) {
        const bool is_up = name.ends_with(up);
        ATELIER_CHECK_INPUT((is_up || name.ends_with(down)) && name.size() > prefix.size() + up.size(), "{}: tensor {} is no part of a LoRA adapter",
                            where, name);
        const std::string stem = name.substr(0, name.size() - up.size()), module = stem.substr(prefix.size());
        const std::string partner = stem + std::string(is_up ? down : up);
        ATELIER_CHECK_INPUT(file.contains(partner), "{}: {} stands without {}", where, name, partner);
        if (is_up) continue;
        const int row = model.find(module + ".weight");
        ATELIER_CHECK_INPUT(row >= 0, "{}: the model has no {}.weight to adapt: the adapter is of another architecture", where, module);
        const Shape &shape = model.spec(row).shape, &a = stored.shape, &b = file.at(partner).shape;
        ATELIER_CHECK_INPUT(shape.rank() == 2 && a == (Shape{config.rank, shape[1]}) && b == (Shape{shape[0], config.rank}),
                            "{}: {} adapts a matrix {} at rank {}, found A {} and B {}", where, module, shape.str(), config.rank, a.str(),
                            b.str());
        config.targets.push_back(module);
    }
    LoraAdapter adapter(model, config);
    // A module's whole name may be the end of another's: what was adapted must be what the file holds.
    ATELIER_CHECK_INPUT(adapter.table().adapted().size() == config.targets.size(), "{}: its {} modules match {} matrices of the model", where,
                        config.targets.size(), adapter.table().adapted().size());
    const ParameterTable& table = adapter.table().table();
    for (int row = 0; row < table.size(); ++row) read_matrix(file, prefix + table.spec(row).name, adapter.store().values()[row]);
    return adapter;
}

LoraRequest parse_lora_request(const std::string& text) {
    const auto colon = text.rfind(':');
    if (colon == std::string::npos || colon + 1 == text.size() || fs::exists(text)) return {text, 1.0f};
    std::size_t read = 0;
    float scale = 0;
    try {
        scale = std::stof(text.substr(colon + 1), &read);
    } catch (const std::exception&) {
        read = 0;
    }
    ATELIER_CHECK_USAGE(read == text.size() - colon - 1 && std::isfinite(scale), "{}: what stands behind the colon must be a scale", text);
    return {text.substr(0, colon), scale};
}

std::vector<std::string> save_lora(const LoraStore& adapter, const fs::path& directory, LoraLayout layout) {
    const Json settings = settings_of(adapter.table());
    const std::string prefix(layout == LoraLayout::peft ? prefixes[1] : prefixes[0]);
    std::vector<io::TensorToWrite> tensors;
    const ParameterTable& table = adapter.table().table();
    for (int row = 0; row < table.size(); ++row)
        tensors.push_back({prefix + table.spec(row).name, adapter.values()[row], DType::f32});
    if (layout == LoraLayout::diffusers) {
        Json named = Json::object();
        for (const auto& [key, value] : settings.items()) named[prefix + key] = value;
        io::write_safetensors(directory / lora_file_name, tensors, {{"format", "pt"}, {metadata_key, named.dump()}});
        return {lora_file_name};
    }
    io::write_safetensors(directory / peft_weights, tensors, {{"format", "pt"}});
    io::write_text(directory / peft_config, settings.dump(2) + "\n");
    return {peft_weights, peft_config};
}

}  // namespace atelier::nn
