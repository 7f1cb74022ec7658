// A pipeline directory of random weights at the sizes of another one's config files: what large models are measured with where no
// checkpoint is.
//   random_model CONFIGS OUTPUT [SEED]
// CONFIGS holds all of a QwenImage21Pipeline but its weights: model_index.json, processor/, scheduler/, and transformer/, text_encoder/,
// vae/ with their config.json. Matrices are normal with variance 1 / fan-in, norms are ones; stored as bf16 in files of 2 GB.
#include <fmt/format.h>

#include <cstdlib>
#include <iostream>

#include "core/error.hpp"
#include "core/process.hpp"
#include "model/dit/dit.hpp"
#include "model/vae/vae.hpp"
#include "model/vlm/vlm.hpp"
#include "nn/checkpoint_weights.hpp"

namespace {

using namespace atelier;
namespace fs = std::filesystem;

void write_component(const nn::ParameterTable& table, const fs::path& directory, const std::string& stem, std::uint64_t seed) {
    const auto plan = [&](Arena& arena) { return nn::ParameterStore(table, arena); };
    Arena arena("weights", Workspace::measure(plan));
    const nn::ParameterStore store = plan(arena);
    nn::initialise(store, seed);
    nn::StorageFormat format;
    format.dtypes.assign(static_cast<std::size_t>(table.size()), DType::bf16);
    format.shard_bytes = 2'000'000'000;
    nn::save_weights(store, directory, stem, format);
    std::cout << fmt::format("{}: {:.1f} M parameters\n", directory.filename().string(), static_cast<double>(table.count()) / 1e6);
}

void run(const fs::path& configs, const fs::path& output, std::uint64_t seed) {
    fs::copy(configs, output, fs::copy_options::recursive);
    write_component(dit::Dit(dit::load_config(output / "transformer" / "config.json")).table(), output / "transformer", dit::weights_stem, seed);
    write_component(vlm::Vlm(vlm::load_config(output / "text_encoder" / "config.json")).table(), output / "text_encoder", "model", seed + 1);
    write_component(vae::Vae(vae::load_config(output / "vae" / "config.json")).table(), output / "vae", "diffusion_pytorch_model", seed + 2);
}

}  // namespace

int main(int argc, char** argv) {
    try {
        if (argc < 3) {
            std::cerr << "random_model CONFIGS OUTPUT [SEED]\n";
            return static_cast<int>(ErrorKind::usage);
        }
        run(argv[1], argv[2], argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 1);
        return 0;
    } catch (...) {
        return report_failure("random_model");
    }
}
