#include "nn/lora.hpp"

#include <map>
#include <nlohmann/json.hpp>

#include "io/safetensors.hpp"
#include "ops/matmul.hpp"

namespace atelier::nn {
namespace {

using Json = nlohmann::json;

constexpr const char* metadata_key = "lora_adapter_metadata";

struct Settings {
    double alpha = 0;
    std::int64_t rank = 0;
};

Settings read_settings(const io::Safetensors& file) {
    const std::string path = file.path().string();
    const auto found = file.metadata().find(metadata_key);
    ATELIER_CHECK_INPUT(found != file.metadata().end(), "{}: no {} in the file's metadata, so alpha is unknown", path,
                        metadata_key);
    const Json json = Json::parse(found->second, nullptr, false);
    ATELIER_CHECK_INPUT(json.is_object() && json.contains("lora_alpha") && json["lora_alpha"].is_number() &&
                            json.contains("r") && json["r"].is_number_integer(),
                        "{}: {} has no numbers r and lora_alpha", path, metadata_key);
    for (const char* flag : {"use_dora", "use_rslora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out"})
        ATELIER_CHECK_INPUT(!json.contains(flag) || json[flag].is_null() || json[flag] == false, "{}: {} = {} is not supported", path, flag,
                            json[flag].dump());
    for (const char* pattern : {"rank_pattern", "alpha_pattern"})
        ATELIER_CHECK_INPUT(!json.contains(pattern) || json[pattern].is_null() || json[pattern].empty(),
                            "{}: {} = {} is not supported", path, pattern, json[pattern].dump());
    return {json["lora_alpha"].get<double>(), json["r"].get<std::int64_t>()};
}

}  // namespace

LoraAdapter load_lora(const std::filesystem::path& path, const ParameterTable& table) {
    const io::Safetensors file = io::Safetensors::open(path);
    const Settings settings = read_settings(file);
    LoraAdapter adapter;
    constexpr std::string_view down = ".lora_A.weight", up = ".lora_B.weight";
    for (const auto& [name, stored] : file.tensors()) {
        if (name.ends_with(up)) {
            const std::string partner = name.substr(0, name.size() - up.size()) + std::string(down);
            ATELIER_CHECK_INPUT(file.contains(partner), "{}: {} stands without {}", path.string(), name, partner);
            continue;
        }
        ATELIER_CHECK_INPUT(name.ends_with(down), "{}: tensor {} is no part of a LoRA adapter", path.string(), name);
        const std::string module = name.substr(0, name.size() - down.size());
        const std::string partner = module + std::string(up);
        ATELIER_CHECK_INPUT(file.contains(partner), "{}: {} stands without {}", path.string(), name, partner);
        LoraMatrix matrix;
        matrix.parameter = table.find(module + ".weight");
        ATELIER_CHECK_INPUT(matrix.parameter >= 0, "{}: the model has no {}.weight to adapt", path.string(), module);
        const Shape& shape = table.spec(matrix.parameter).shape;
        const Shape &a = stored.shape, &b = file.at(partner).shape;
        ATELIER_CHECK_INPUT(shape.rank() == 2 && a == (Shape{settings.rank, shape[1]}) && b == (Shape{shape[0], settings.rank}),
                            "{}: {} adapts a matrix {} at rank {}, found A {} and B {}", path.string(), module, shape.str(),
                            settings.rank, a.str(), b.str());
        matrix.rank = settings.rank;
        matrix.scale = static_cast<float>(settings.alpha / static_cast<double>(settings.rank));
        matrix.a = file.floats(name);
        matrix.b = file.floats(partner);
        adapter.matrices.push_back(std::move(matrix));
    }
    return adapter;
}

void merge_lora(const LoraAdapter& adapter, const ParameterStore& weights, float factor) {
    for (const LoraMatrix& m : adapter.matrices) {
        const Tensor w = weights[m.parameter];
        ops::matmul(false, false, factor * m.scale, {const_cast<float*>(m.b.data()), w.size(0), m.rank, m.rank},
                    {const_cast<float*>(m.a.data()), m.rank, w.size(1), w.size(1)}, 1.0f,
                    {w.f32(), w.size(0), w.size(1), w.size(1)});
    }
}

LoraMatrix lora_gradients(const LoraMatrix& m, const Tensor& d_weight) {
    LoraMatrix g = m;
    const std::int64_t out = d_weight.size(0), in = d_weight.size(1);
    const ops::MatrixView dw{d_weight.f32(), out, in, in};
    ops::matmul(true, false, m.scale, {const_cast<float*>(m.b.data()), out, m.rank, m.rank}, dw, 0.0f,
                {g.a.data(), m.rank, in, in});
    ops::matmul(false, true, m.scale, dw, {const_cast<float*>(m.a.data()), m.rank, in, in}, 0.0f,
                {g.b.data(), out, m.rank, m.rank});
    return g;
}

}  // namespace atelier::nn
