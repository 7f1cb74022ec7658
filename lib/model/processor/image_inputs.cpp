#include "model/processor/image_inputs.hpp"

#include "core/error.hpp"

namespace atelier::model {

PictureSize size_for_vision(const ProcessorConfig& config, PictureSize size) {
    return smart_resize(size, config.patch_size * config.merge_size, config.min_pixels, config.max_pixels);
}

io::Image resize_for_vision(const ProcessorConfig& config, const io::Image& rgb, PassOrder order) {
    const PictureSize size = size_for_vision(config, {rgb.width, rgb.height});
    return resize(rgb, static_cast<int>(size.width), static_cast<int>(size.height), config.filter,
                  order);
}

void append_patches(const ProcessorConfig& config, const io::Image& rgb, VisionInputs& inputs) {
    const std::int64_t patch = config.patch_size, merge = config.merge_size, block = patch * merge;
    ATELIER_CHECK(
        rgb.channels == 3 && rgb.width % block == 0 && rgb.height % block == 0 && !rgb.empty(),
        "expected an RGB picture with sides that are multiples of {}, found {} x {} x {}", block,
        rgb.width, rgb.height, rgb.channels);
    const std::int64_t high = rgb.height / patch, wide = rgb.width / patch;
    inputs.patch_elements = config.patch_elements();
    inputs.patches += high * wide;
    inputs.image_grid_thw.push_back({1, high, wide});
    inputs.pixel_values.reserve(static_cast<std::size_t>(inputs.patches * inputs.patch_elements));

    std::array<std::array<float, 256>, 3> value;  // of each byte, by channel
    for (std::size_t c = 0; c < 3; ++c) {
        for (int byte = 0; byte < 256; ++byte) {
            value[c][static_cast<std::size_t>(byte)] =
                static_cast<float>((byte * config.rescale_factor - config.mean[c]) / config.std[c]);
        }
    }
    const auto append = [&](std::int64_t patch_row, std::int64_t patch_column) {
        for (std::size_t c = 0; c < 3; ++c) {
            for (std::int64_t frame = 0; frame < config.temporal_patch_size; ++frame) {
                for (std::int64_t y = 0; y < patch; ++y) {
                    for (std::int64_t x = 0; x < patch; ++x) {
                        const std::uint8_t* pixel =
                            rgb.at(static_cast<int>(patch_column * patch + x),
                                   static_cast<int>(patch_row * patch + y));
                        inputs.pixel_values.push_back(value[c][pixel[c]]);
                    }
                }
            }
        }
    };
    for (std::int64_t row = 0; row < high; row += merge) {
        for (std::int64_t column = 0; column < wide; column += merge) {
            for (std::int64_t i = 0; i < merge * merge; ++i)
                append(row + i / merge, column + i % merge);
        }
    }
}

std::vector<float> vae_tensor(const io::Image& image) {
    const auto area =
        static_cast<std::size_t>(image.width) * static_cast<std::size_t>(image.height);
    const auto channels = static_cast<std::size_t>(image.channels);
    std::vector<float> values(area * channels);
    for (std::size_t c = 0; c < channels; ++c) {
        for (std::size_t i = 0; i < area; ++i) {
            values[c * area + i] =
                2.0f * (static_cast<float>(image.pixels[i * channels + c]) / 255.0f) - 1.0f;
        }
    }
    return values;
}

PictureSize reference_size(PictureSize size, std::int64_t output_resolution) {
    const PictureSize target =
        calculate_dimensions(output_resolution * output_resolution,
                             static_cast<double>(size.width) / static_cast<double>(size.height));
    ATELIER_CHECK_INPUT(
        target.width > 0 && target.height > 0,
        "a reference picture of {} x {} would become {} x {} at output resolution {}; crop it or "
        "raise the resolution",
        size.width, size.height, target.width, target.height, output_resolution);
    return target;
}

PictureSize output_size(std::int64_t height, std::int64_t width, std::int64_t output_resolution,
                        std::span<const io::Image> references) {
    PictureSize size{output_resolution, output_resolution};
    if (!references.empty()) {
        const io::Image& last = references.back();
        size = calculate_dimensions(
            output_resolution * output_resolution,
            static_cast<double>(last.width) / static_cast<double>(last.height));
    }
    if (width != 0) size.width = width;
    if (height != 0) size.height = height;
    constexpr std::int64_t multiple = 2 * pixels_per_latent;
    size = {size.width / multiple * multiple, size.height / multiple * multiple};
    ATELIER_CHECK_USAGE(
        size.width > 0 && size.height > 0,
        "expected an output picture of at least {0} x {0} pixels, found {1} x {2} (rounded down to "
        "multiples of {0})",
        multiple, size.width, size.height);
    return size;
}

ReferenceInputs outline_references(const ProcessorConfig& config, std::span<const PictureSize> sizes, std::int64_t output_resolution) {
    ReferenceInputs inputs;
    inputs.vision.patch_elements = config.patch_elements();
    for (const PictureSize& own : sizes) {
        const PictureSize size = reference_size(own, output_resolution), seen = size_for_vision(config, size);
        const std::int64_t high = seen.height / config.patch_size, wide = seen.width / config.patch_size, merge = config.merge_size;
        inputs.vision.image_grid_thw.push_back({1, high, wide});
        inputs.vision.patches += high * wide;
        ReferencePicture& reference = inputs.references.emplace_back();
        reference.latent_height = size.height / pixels_per_latent;
        reference.latent_width = size.width / pixels_per_latent;
        ATELIER_CHECK_INPUT(
            high / merge * 2 == reference.latent_height &&
                wide / merge * 2 == reference.latent_width,
            "{}: size limits {} … {} pixels: a reference of {} x {} pixels becomes {} x {} tokens, "
            "expected {} x {}; choose an output resolution within the limits",
            config.path.string(), config.min_pixels, config.max_pixels, size.width, size.height,
            wide / merge, high / merge, reference.latent_width / 2, reference.latent_height / 2);
    }
    return inputs;
}

ReferenceInputs prepare_references(const ProcessorConfig& config, std::span<const io::Image> images,
                                   std::int64_t output_resolution, PassOrder order) {
    std::vector<PictureSize> sizes;
    for (const io::Image& image : images) sizes.push_back({image.width, image.height});
    ReferenceInputs inputs = outline_references(config, sizes, output_resolution);
    inputs.vision = {};
    for (std::size_t i = 0; i < images.size(); ++i) {
        ReferencePicture& reference = inputs.references[i];
        reference.picture = resize(with_alpha(images[i]), static_cast<int>(reference.latent_width * pixels_per_latent),
                                   static_cast<int>(reference.latent_height * pixels_per_latent), ResizeFilter::lanczos, order);
        reference.vae_input = vae_tensor(reference.picture);
        append_patches(config, resize_for_vision(config, over_white(reference.picture), order),
                       inputs.vision);
    }
    return inputs;
}

}  // namespace atelier::model
