// atelier-generate: pictures from prompts, text to image or with reference pictures.
#include <fmt/format.h>

#include <chrono>
#include <iostream>

#include "core/parallel.hpp"
#include "core/process.hpp"
#include "flow/noise.hpp"
#include "io/image/png.hpp"
#include "io/safetensors.hpp"
#include "options.hpp"
#include "pipeline/generate.hpp"
#include "pipeline/pipeline.hpp"
#include "requests.hpp"

namespace {

using namespace atelier;
using generate::Options;
using generate::Request;

std::vector<float> initial_noise(const Options& o, std::uint64_t number, std::int64_t tokens, std::int64_t channels) {
    std::vector<float> noise(static_cast<std::size_t>(tokens * channels));
    if (!o.latents) {
        fill_normal(flow::initial_noise_key(flow::sample_noise_key(o.seed, 0, number, 0)), noise);
        return noise;
    }
    const auto file = io::Safetensors::open(*o.latents);
    const Shape expected{1, tokens, channels};
    ATELIER_CHECK_INPUT(file.at("latents").shape == expected, "{}: tensor latents must have shape {}, found {}",
                        o.latents->string(), expected.str(), file.at("latents").shape.str());
    return file.floats("latents");
}

void run_request(const Options& o, pipeline::Pipeline& model, const Request& request, std::uint64_t number) {
    std::vector<io::Image> images;
    for (const auto& path : request.images) images.push_back(io::read_png(path));
    const auto size = model::output_size(request.height, request.width, o.output_resolution, images);
    const auto references = model.prepare(images, o.output_resolution);
    const auto conditional = model.encode(request.prompt, references);
    pipeline::GenerateRequest r;
    r.conditional = {&conditional};
    r.guidance.scale = o.guidance_scale;
    pipeline::EncodedPrompt unconditional;
    if (!r.guidance.is_off() && request.has_negative) {
        unconditional = model.encode_negative(request.negative, references, conditional);
        r.unconditional = {&unconditional};
    }
    r.target = {size.height / model::pixels_per_latent, size.width / model::pixels_per_latent};
    r.schedule = model.schedule(o.steps, r.target.tokens());
    const std::int64_t channels = model.dit().config().in_channels;
    std::vector<float> latents = initial_noise(o, number, r.target.tokens(), channels);
    Workspace workspace("sampling");
    pipeline::generate_latents(model.dit(), model.dit_weights(), r, latents, workspace);

    const Tensor packed = Tensor::of(latents.data(), {1, r.target.tokens(), channels});
    if (o.output_latents) io::write_safetensors(*o.output_latents, {{"latents", packed, DType::f32}});
    const std::int64_t planes = model.vae().config().channels;
    std::vector<float> picture(static_cast<std::size_t>(size.height * size.width * planes));
    model.codec().decode(packed, r.target.height, r.target.width,
                         Tensor::of(picture.data(), {1, size.height, size.width, planes}));
    io::Image image{static_cast<int>(size.width), static_cast<int>(size.height), static_cast<int>(planes), {}};
    image.pixels.resize(picture.size());
    vae::to_bytes(picture.data(), static_cast<std::int64_t>(picture.size()), image.pixels.data());
    io::write_png(request.output, image);
}

void run(const Options& o) {
    set_threads(o.threads);
    const auto requests = generate::make_requests(o);
    if (o.output_dir) std::filesystem::create_directories(*o.output_dir);
    pipeline::Placement placement(o.device);
    if (o.device == Device::cuda) placement.precision = ops::ProductPrecision::bf16;
    placement.weights_change = !o.loras.empty();
    pipeline::Pipeline model(o.model, o.transformer, placement);
    for (const nn::LoraRequest& lora : o.loras)
        nn::merge_lora(nn::load_lora(lora.path, model.dit().table()).store(), model.dit_weights(), lora.scale);
    if (!o.loras.empty()) model.weights_were_changed();
    const auto begin = std::chrono::steady_clock::now();
    for (std::size_t i = 0; i < requests.size(); ++i) {
        run_request(o, model, requests[i], i);
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
        std::cerr << fmt::format("{} ({} of {}, {:.1f} s)\n", requests[i].output.string(), i + 1, requests.size(),
                                 seconds.count());
    }
}

}  // namespace

int main(int argc, char** argv) {
    try {
        if (const auto options = generate::parse_options(argc, argv)) run(*options);
        return 0;
    } catch (...) {
        return report_failure("atelier-generate");
    }
}
