#include "pipeline/export.hpp"

#include <algorithm>

#include "io/publish.hpp"
#include "model/dit/dit.hpp"

namespace atelier::pipeline {
namespace {

namespace fs = std::filesystem;

constexpr const char* transformer_name = "transformer";

/// Everything of a pipeline directory but its transformer.
void take_components(const fs::path& model, const fs::path& to, bool copies) {
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(model)) {
        const fs::path name = entry.path().filename();
        if (name == transformer_name || name.string().starts_with(".")) continue;
        if (entry.is_directory() && !copies)
            fs::create_directory_symlink(fs::canonical(entry.path()), to / name, error);
        else
            fs::copy(entry.path(), to / name, fs::copy_options::recursive, error);
        ATELIER_CHECK_IO(!error, "cannot take {} into {}: {}", entry.path().string(), to.string(), error.message());
    }
}

void check_output(const fs::path& output) {
    ATELIER_CHECK_USAGE(!fs::exists(output), "{} is there already: choose another directory", output.string());
}

}  // namespace

void export_pipeline(const ExportRequest& r) {
    check_output(r.output);
    ATELIER_CHECK_INPUT(fs::exists(r.model / "model_index.json"), "{} is missing: a diffusers model directory was expected",
                        (r.model / "model_index.json").string());
    const bool is_adapter = fs::exists(r.transformer / nn::lora_file_name);
    const fs::path component = is_adapter ? r.model / transformer_name : r.transformer;
    const dit::Dit dit(dit::load_config(component / "config.json"));
    const io::Safetensors stored = dit::open_weights(component);
    nn::check_weights(dit.table(), stored);
    std::vector<std::pair<nn::LoraAdapter, float>> adapters;
    if (is_adapter) adapters.emplace_back(nn::load_lora(r.transformer / nn::lora_file_name, dit.table()), 1.0f);
    for (const nn::LoraRequest& lora : r.loras) adapters.emplace_back(nn::load_lora(lora.path, dit.table()), lora.scale);
    const nn::StorageFormat format = nn::storage_format(dit.table(), stored, r.dtype, r.shard_bytes);
    const auto tensors = nn::merged_tensors(dit.table(), stored, adapters, format.dtypes);
    io::publish_directory(r.output, [&](const fs::path& temporary) {
        take_components(r.model, temporary, r.copies);
        io::make_directories(temporary / transformer_name);
        io::write_sharded(temporary / transformer_name, dit::weights_stem, tensors, format.shard_bytes, format.metadata);
        std::error_code error;
        fs::copy_file(component / "config.json", temporary / transformer_name / "config.json", error);
        ATELIER_CHECK_IO(!error, "cannot copy {}: {}", (component / "config.json").string(), error.message());
    });
}

void export_adapter(const ExportRequest& r, nn::LoraLayout layout) {
    check_output(r.output);
    const dit::Dit dit(dit::load_config(r.model / transformer_name / "config.json"));
    const nn::LoraAdapter adapter = nn::load_lora(r.transformer, dit.table());
    io::publish_directory(r.output, [&](const fs::path& temporary) { nn::save_lora(adapter.store(), temporary, layout); });
}

}  // namespace atelier::pipeline
