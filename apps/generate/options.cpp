#include "options.hpp"

#include <boost/program_options.hpp>
#include <cmath>
#include <thread>

#include "config/command_line.hpp"
#include "core/error.hpp"

namespace atelier::generate {

namespace po = boost::program_options;

std::optional<Options> parse_options(int argc, char** argv) {
    Options o;
    std::string model, transformer, device, latents, output_latents, prompts, output_dir;
    std::vector<std::string> images, loras;
    po::options_description text("atelier-generate: pictures from a diffusers directory of class QwenImage21Pipeline");
    text.add_options()("help", "this text")("model", po::value(&model), "model directory (required)")(
        "device", po::value(&device)->default_value("cpu"), "cpu or cuda: where the model runs")(
        "transformer", po::value(&transformer), "transformer directory (weights, or an adapter) to use instead of the model's own")(
        "lora", po::value(&loras)->composing(), "FILE[:SCALE], an adapter in diffusers' or PEFT's layout to add; may be repeated")(
        "prompt", po::value(&o.prompt), "what to draw")("negative", po::value(&o.negative), "negative prompt, for guidance")(
        "guidance-scale", po::value(&o.guidance_scale), "guidance scale; above 1 it needs --negative (may be empty)")(
        "image", po::value(&images)->composing(), "reference picture (PNG); may be repeated")(
        "height", po::value(&o.height), "pixels, rounded down to a multiple of 32")(
        "width", po::value(&o.width), "pixels, rounded down to a multiple of 32")(
        "output-resolution", po::value(&o.output_resolution)->default_value(o.output_resolution),
        "side of a square of the area in which references are used and, without height and width, pictures made")(
        "steps", po::value(&o.steps), "denoising steps (default: the model's own schedule, else 40)")(
        "seed", po::value(&o.seed)->default_value(o.seed), "seed of the initial noise")(
        "latents", po::value(&latents), "safetensors file with the initial noise: 'latents' [1, tokens, channels], packed")(
        "output", po::value(&o.output)->default_value(o.output), "picture to write (PNG)")(
        "output-latents", po::value(&output_latents), "safetensors file to write the final latents to")(
        "prompts", po::value(&prompts), "JSON lines {id, text, negative?, images?, size?: [height, width]}: one picture each")(
        "output-dir", po::value(&output_dir), "directory for the pictures of --prompts")(
        "threads", po::value(&o.threads)->default_value(0), "threads; 0: all cores");
    const auto values = config::parse_command_line(text, argc, argv);
    if (!values) return std::nullopt;
    o.has_prompt = values->count("prompt") != 0;
    o.has_negative = values->count("negative") != 0;
    ATELIER_CHECK_USAGE(!model.empty(), "--model is required (see --help)");
    ATELIER_CHECK_USAGE(o.has_prompt != !prompts.empty(), "give either --prompt or --prompts");
    ATELIER_CHECK_USAGE(prompts.empty() == output_dir.empty(), "--prompts and --output-dir go together");
    ATELIER_CHECK_USAGE(prompts.empty() || (images.empty() && latents.empty() && output_latents.empty()),
                        "--image, --latents and --output-latents go with --prompt, not with --prompts");
    ATELIER_CHECK_USAGE(std::isfinite(o.guidance_scale), "--guidance-scale {}: a finite number was expected", o.guidance_scale);
    ATELIER_CHECK_USAGE(o.guidance_scale <= 1.0 || o.has_negative || !prompts.empty(),
                        "--guidance-scale {} needs --negative", o.guidance_scale);
    ATELIER_CHECK_USAGE(o.steps >= 0 && o.height >= 0 && o.width >= 0 && o.output_resolution >= 32,
                        "--steps, --height and --width must not be negative, --output-resolution at least 32");
    ATELIER_CHECK_USAGE(device == "cpu" || device == "cuda", "--device must be cpu or cuda, found \"{}\"", device);
    o.device = device == "cuda" ? Device::cuda : Device::cpu;
    o.model = model;
    o.transformer = transformer;
    for (const std::string& lora : loras) o.loras.push_back(nn::parse_lora_request(lora));
    for (const std::string& image : images) o.images.emplace_back(image);
    if (!latents.empty()) o.latents = latents;
    if (!output_latents.empty()) o.output_latents = output_latents;
    if (!prompts.empty()) o.prompts = prompts;
    if (!output_dir.empty()) o.output_dir = output_dir;
    if (o.threads == 0) o.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    return o;
}

}  // namespace atelier::generate
