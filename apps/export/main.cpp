// atelier-export: a whole pipeline directory for diffusers from a policy's or student's weights.
#include <boost/program_options.hpp>

#include "config/command_line.hpp"
#include "core/error.hpp"
#include "core/process.hpp"
#include "nn/checkpoint_weights.hpp"
#include "pipeline/export.hpp"

namespace {

namespace po = boost::program_options;
using namespace atelier;

int run(int argc, char** argv) {
    std::string model, transformer, output, dtype = "kept", components = "link", kind = "pipeline";
    std::vector<std::string> loras;
    double shard_size = 5000;
    po::options_description text(
        "atelier-export: a pipeline directory that QwenImage21Pipeline.from_pretrained opens, of one transformer and the other "
        "components of a model");
    text.add_options()("help", "this text")("model", po::value(&model), "model directory of the other components (required)")(
        "transformer", po::value(&transformer), "directory of the weights or of an adapter: a policy, a student (default: the model's own)")(
        "lora", po::value(&loras)->composing(), "FILE[:SCALE], an adapter to merge into the weights; may be repeated")(
        "output", po::value(&output), "directory to make (required)")(
        "as", po::value(&kind)->default_value(kind),
        "what to make: pipeline (adapters merged), or the transformer's adapter alone: diffusers or peft")(
        "dtype", po::value(&dtype)->default_value(dtype), "of the weights: kept, f32, bf16 or f16")(
        "shard-size", po::value(&shard_size)->default_value(shard_size), "weights are cut into files of this size, in MB")(
        "components", po::value(&components)->default_value(components), "the other components: link or copy");
    if (!config::parse_command_line(text, argc, argv)) return 0;
    ATELIER_CHECK_USAGE(!model.empty() && !output.empty(), "--model and --output are required (see --help)");
    ATELIER_CHECK_USAGE(components == "link" || components == "copy", "--components must be link or copy, found {}", components);
    ATELIER_CHECK_USAGE(shard_size > 0, "--shard-size must be positive, found {}", shard_size);
    pipeline::ExportRequest request;
    request.model = model;
    request.transformer = transformer.empty() ? std::filesystem::path(model) / "transformer" : std::filesystem::path(transformer);
    request.output = output;
    request.dtype = nn::parse_storage_dtype(dtype);
    request.shard_bytes = static_cast<std::uint64_t>(shard_size * 1e6);
    request.copies = components == "copy";
    for (const std::string& lora : loras) request.loras.push_back(nn::parse_lora_request(lora));
    if (kind == "pipeline") {
        pipeline::export_pipeline(request);
        return 0;
    }
    ATELIER_CHECK_USAGE(kind == "diffusers" || kind == "peft", "--as must be pipeline, diffusers or peft, found {}", kind);
    ATELIER_CHECK_USAGE(loras.empty(), "--lora goes with --as pipeline");
    pipeline::export_adapter(request, kind == "peft" ? nn::LoraLayout::peft : nn::LoraLayout::diffusers);
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    try {
        return run(argc, argv);
    } catch (...) {
        return report_failure("atelier-export");
    }
}
