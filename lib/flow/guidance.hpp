#pragma once

#include <cstdint>
#include <span>
#include <string>

// Spans of fp32 numbers are of the device's memory where the calling thread's operations run on one.
namespace atelier::flow {

/// What is trained under classifier-free guidance. conditional: the conditional policy at
/// transitions sampled with guidance (the unconditional branch is no part of the objective).
/// guided: both branches, gradients through both. none: no guidance anywhere.
enum class GuidanceTrain { conditional, guided, none };

GuidanceTrain parse_guidance_train(const std::string& word);
const char* name_of(GuidanceTrain train);

struct Guidance {
    double scale = 1.0;
    bool rescale = false;  ///< to the conditional velocity's norm, token by token
    /// Without effect: only the conditional branch is needed (diffusers asks for scale > 1 too).
    bool is_off() const { return scale <= 1.0; }
};

/// out = u + scale (c - u), [tokens, channels]; with rescale, out *= |c| / |out| over each token's
/// channels (diffusers pipeline_qwenimage.py; pipeline_qwenimage21.py has no rescale). A
/// combination of norm 0 stays 0. out may be c or u. Throws Error(internal) for spans of unequal
/// size.
template <typename T>
void guide(const Guidance& guidance, std::int64_t channels, std::span<const T> conditional,
           std::span<const T> unconditional, std::span<T> out);

/// d_conditional += ..., d_unconditional += ... from d_out; all [tokens, channels].
template <typename T>
void guide_backward(const Guidance& guidance, std::int64_t channels, std::span<const T> conditional,
                    std::span<const T> unconditional, std::span<const T> d_out,
                    std::span<T> d_conditional, std::span<T> d_unconditional);

}  // namespace atelier::flow
