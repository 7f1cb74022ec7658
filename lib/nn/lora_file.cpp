#include "nn/lora_file.hpp"

#include <cmath>
#include <map>

#include "core/device.hpp"
#include "core/json.hpp"
#include "io/file_io.hpp"
#include "io/safetensors.hpp"

namespace atelier::nn {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

void read_matrix(const io::Safetensors& file, const io::StoredTensor& stored, const Tensor& to) {
    io::to_f32(stored, to.f32());
    for (std::int64_t i = 0; i < to.elements(); ++i)
        ATELIER_CHECK_INPUT(std::isfinite(to.f32()[i]), "{}: tensor {} holds {} at element {}", file.path().string(), stored.name, to.f32()[i], i);
}

/// As PEFT writes it: the first module's rank and alpha for all, and by name for those that have others.
Json settings_of(const LoraTable& table) {
    const auto size_of = [&](int row) { return table.sizes()[static_cast<std::size_t>(row)]; };
    const LoraSize usual = size_of(table.adapted().front());
    Json modules = Json::array(), ranks = Json::object(), alphas = Json::object();
    for (const int row : table.adapted()) {
        const std::string& name = table.model().spec(row).name;
        modules.push_back(name.substr(0, name.size() - std::string_view(".weight").size()));
        const std::string pattern = "^" + modules.back().get<std::string>();  // the whole name, as diffusers writes it
        if (size_of(row).rank != usual.rank) ranks[pattern] = size_of(row).rank;
        if (size_of(row).alpha != usual.alpha) alphas[pattern] = size_of(row).alpha;
    }
    return {{"peft_type", "LORA"},     {"r", usual.rank},         {"lora_alpha", usual.alpha}, {"rank_pattern", ranks},
            {"alpha_pattern", alphas}, {"target_modules", modules}, {"bias", "none"},            {"lora_dropout", 0.0},
            {"use_dora", false},       {"use_rslora", false},     {"fan_in_fan_out", false},   {"inference_mode", true}};
}

}  // namespace

LoraAdapter::LoraAdapter(LoraTable table, Device device)
    : table_(std::make_unique<LoraTable>(std::move(table))),
      arena_(Arena::of("adapter", [&](Arena& arena) { store_ = std::make_unique<LoraStore>(*table_, arena, device); })) {}

LoraAdapter::LoraAdapter(const ParameterTable& model, const LoraConfig& config, Device device) : LoraAdapter(LoraTable(model, config), device) {}

LoraAdapter LoraAdapter::copy_to(Device device) const {
    LoraAdapter copy(*table_, device);
    transfer(store_->values().flat(), copy.store().values().flat());
    return copy;
}

LoraAdapter load_lora(const fs::path& path, const ParameterTable& model) {
    const LoraListing listing = list_lora(path);
    const std::string where = listing.file.path().string();
    // Everything is checked before any memory is taken.
    std::vector<LoraSize> sizes(static_cast<std::size_t>(model.size()));
    for (const LoraListing::Module& module : listing.modules) {
        const int row = model.find(module.name + ".weight");
        ATELIER_CHECK_INPUT(row >= 0, "{}: the model has no {}.weight to adapt: the adapter is of another architecture", where, module.name);
        const Shape &shape = model.spec(row).shape, &a = module.a.shape, &b = module.b.shape;
        ATELIER_CHECK_INPUT(shape.rank() == 2 && a[1] == shape[1] && b[0] == shape[0], "{}: {} adapts a matrix {}, found A {} and B {}", where,
                            module.name, shape.str(), a.str(), b.str());
        sizes[static_cast<std::size_t>(row)] = module.size;
    }
    LoraAdapter adapter(LoraTable(model, std::move(sizes)));
    for (const LoraListing::Module& module : listing.modules) {
        const int row = model.find(module.name + ".weight");
        read_matrix(listing.file, module.a, adapter.store().a(row));
        read_matrix(listing.file, module.b, adapter.store().b(row));
    }
    return adapter;
}

LoraRequest parse_lora_request(const std::string& text) {
    const auto colon = text.rfind(':');
    if (fs::exists(text)) return {text, 1.0f};
    ATELIER_CHECK_INPUT(colon != std::string::npos && fs::exists(text.substr(0, colon)), "--lora {}: {} is missing", text, text.substr(0, colon));
    std::size_t read = 0;
    float scale = 0;
    try {
        scale = std::stof(text.substr(colon + 1), &read);
    } catch (const std::exception&) {
        read = 0;
    }
    ATELIER_CHECK_USAGE(read == text.size() - colon - 1 && std::isfinite(scale), "--lora {}: what stands behind the colon must be a scale", text);
    return {text.substr(0, colon), scale};
}

std::vector<io::TensorToWrite> merged_tensors(const ParameterTable& model, const io::Safetensors& stored,
                                              const std::vector<std::pair<LoraAdapter, float>>& adapters, const std::vector<DType>& dtypes) {
    std::vector<io::TensorToWrite> tensors;
    for (int row = 0; row < model.size(); ++row) {
        const io::StoredTensor& t = stored.at(model.spec(row).name);
        io::TensorToWrite out{t.name, Tensor(nullptr, DType::f32, t.shape), dtypes[static_cast<std::size_t>(row)]};
        out.make = [&adapters, &t, row](float* values) {
            io::to_f32(t, values);
            io::release_pages(t);
            for (const auto& [adapter, scale] : adapters)
                if (adapter.store().adapts(row)) merge_lora(adapter.store(), row, scale, values);
        };
        tensors.push_back(std::move(out));
    }
    return tensors;
}

std::vector<std::string> save_lora(const LoraStore& adapter, const fs::path& directory, LoraLayout layout) {
    const Json settings = settings_of(adapter.table());
    const std::string prefix(layout == LoraLayout::peft ? peft_prefix : pipeline_prefix);
    std::vector<io::TensorToWrite> tensors;
    const ParameterTable& table = adapter.table().table();
    for (int row = 0; row < table.size(); ++row)
        tensors.push_back({prefix + table.spec(row).name, adapter.values()[row], DType::f32});
    if (layout == LoraLayout::diffusers) {
        Json named = Json::object();
        for (const auto& [key, value] : settings.items()) named[prefix + key] = value;
        io::write_safetensors(directory / lora_file_name, tensors, {{"format", "pt"}, {lora_metadata_key, named.dump()}});
        return {lora_file_name};
    }
    io::write_safetensors(directory / peft_file_name, tensors, {{"format", "pt"}});
    io::write_text(directory / peft_config_name, settings.dump(2) + "\n");
    return {peft_file_name, peft_config_name};
}

}  // namespace atelier::nn
