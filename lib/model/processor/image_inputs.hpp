#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "io/image/image.hpp"
#include "model/processor/processor_config.hpp"
#include "model/processor/sizes.hpp"

namespace atelier::model {

/// Pixels per latent token, each way, of QwenImage21Pipeline (its `vae_scale_factor`).
inline constexpr std::int64_t pixels_per_latent = 16;

/// What the condition encoder's vision tower takes for a set of pictures.
struct VisionInputs {
    /// [patches, patch_elements]: a row is [channel][frame][row][column] of one patch, frames
    /// equal; rows in merge order (block row, block column, row in block, column in block), picture
    /// by picture.
    std::vector<float> pixel_values;
    std::int64_t patches = 0;
    std::int64_t patch_elements = 0;
    /// Per picture: frames (1), patches high, patches wide.
    std::vector<std::array<std::int64_t, 3>> image_grid_thw;
};

/// One reference picture at the size in which encoder and VAE see it.
struct ReferencePicture {
    io::Image picture;               ///< RGBA, sides multiples of 32
    std::vector<float> vae_input;    ///< [4, height, width], 2·x/255 − 1
    std::int64_t latent_height = 0;  ///< latent tokens (16 pixels)
    std::int64_t latent_width = 0;
};

/// All reference pictures of a prompt; shared by its positive and its negative text.
struct ReferenceInputs {
    std::vector<ReferencePicture> references;
    VisionInputs vision;
};

/// The size that the processor gives a picture (smart_resize).
PictureSize size_for_vision(const ProcessorConfig& config, PictureSize size);
/// The processor's resize, with the configured filter, of an RGB picture.
io::Image resize_for_vision(const ProcessorConfig& config, const io::Image& rgb, PassOrder order);
/// Appends the patches of an RGB picture whose sides are multiples of patch_size · merge_size.
void append_patches(const ProcessorConfig& config, const io::Image& rgb, VisionInputs& inputs);
/// [channels, height, width], 2·x/255 − 1 in fp32.
std::vector<float> vae_tensor(const io::Image& image);

/// The size at which a reference of `size` is used: about output_resolution² pixels, sides
/// multiples of 32. Throws Error(input) if its ratio is so extreme that a side vanishes.
PictureSize reference_size(PictureSize size, std::int64_t output_resolution);

/// The size of the generated picture: `height` and `width` where not 0; otherwise from the last
/// reference's ratio (its size before any resize), or output_resolution where there is none;
/// rounded down to multiples of 32. Throws Error(usage) if nothing is left.
PictureSize output_size(std::int64_t height, std::int64_t width, std::int64_t output_resolution,
                        std::span<const io::Image> references);

/// What prepare_references gives for pictures of these sizes, without pictures and numbers: grids and how many patches. Throws as it does.
ReferenceInputs outline_references(const ProcessorConfig& config, std::span<const PictureSize> sizes, std::int64_t output_resolution);

/// Pictures as read (RGB or RGBA, any size) → what encoder and VAE take, as QwenImage21Pipeline
/// does: to RGBA, Lanczos to reference_size; the VAE sees that, the encoder sees it over white and
/// through its processor. Throws Error(input) if the processor's size limits would give the encoder
/// another grid than the VAE's latents (one slot of the text stands for 2 × 2 latent tokens).
/// `order`: the default gives what diffusers gives with a current Pillow.
ReferenceInputs prepare_references(const ProcessorConfig& config, std::span<const io::Image> images,
                                   std::int64_t output_resolution,
                                   PassOrder order = PassOrder::pillow_13);

}  // namespace atelier::model
