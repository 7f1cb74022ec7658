#include <algorithm>
#include <unordered_map>

#include "core/error.hpp"
#include "ops/convolution.hpp"
#include "ops/cpu/onednn.hpp"

namespace atelier::ops {
namespace {

using cpu::engine, cpu::plain, cpu::view;
using Tag = dnnl::memory::format_tag;
using Arguments = std::unordered_map<int, dnnl::memory>;

/// Numbers that a memory description takes, rounded up to whole cache lines.
std::int64_t numbers(const dnnl::memory::desc& d) { return (static_cast<std::int64_t>(d.get_size()) + 63) / 64 * 16; }

void reorder(const dnnl::memory& from, const dnnl::memory& to) {
    dnnl::memory source = from, target = to;
    dnnl::reorder(source, target).execute(cpu::stream(), source, target);
}

}  // namespace

// Weights are kept by the caller in the checkpoint's layout; each call brings them into the library's.
struct TrainableConvolution::Prepared {
    dnnl::memory::desc given;  ///< weights as the caller has them
    dnnl::convolution_forward::primitive_desc forward_description;
    dnnl::convolution_backward_data::primitive_desc data_description;
    dnnl::convolution_backward_weights::primitive_desc weights_description;
    dnnl::convolution_forward forward;
    dnnl::convolution_backward_data backward_data;
    dnnl::convolution_backward_weights backward_weights;
};

TrainableConvolution::TrainableConvolution(const ConvolutionShape& s) : shape_(s) {
    cpu::use_one_thread();
    const auto in = plain({1, s.in_channels, s.height, s.width}, Tag::nhwc);
    const auto out = plain({1, s.out_channels, s.out_height(), s.out_width()}, Tag::nhwc);
    const auto weights = plain({s.out_channels, s.in_channels, s.kernel, s.kernel}, Tag::any);
    const auto bias = plain({s.out_channels}, Tag::x);
    const dnnl::memory::dims strides{s.stride, s.stride}, begin{s.pad_begin, s.pad_begin}, end{s.pad_end, s.pad_end};
    constexpr auto direct = dnnl::algorithm::convolution_direct;
    constexpr auto training = dnnl::prop_kind::forward_training;
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    try {
#if DNNL_VERSION_MAJOR >= 3
        const dnnl::convolution_forward::primitive_desc forward(engine(), training, direct, in, weights, bias, out, strides, begin,
                                                                end, attributes);
        const dnnl::convolution_backward_data::primitive_desc data(engine(), direct, in, weights, out, strides, begin, end, forward,
                                                                   attributes);
        const dnnl::convolution_backward_weights::primitive_desc gradient(engine(), direct, in, weights, bias, out, strides, begin,
                                                                          end, forward, attributes);
#else
        const dnnl::convolution_forward::primitive_desc forward(
            dnnl::convolution_forward::desc(training, direct, in, weights, bias, out, strides, begin, end), attributes, engine());
        const dnnl::convolution_backward_data::primitive_desc data(
            dnnl::convolution_backward_data::desc(direct, in, weights, out, strides, begin, end), attributes, engine(), forward);
        const dnnl::convolution_backward_weights::primitive_desc gradient(
            dnnl::convolution_backward_weights::desc(direct, in, weights, bias, out, strides, begin, end), attributes, engine(), forward);
#endif
        prepared_ = std::make_unique<Prepared>(
            Prepared{plain({s.out_channels, s.in_channels, s.kernel, s.kernel}, Tag::oihw), forward, data, gradient,
                     dnnl::convolution_forward(forward), dnnl::convolution_backward_data(data),
                     dnnl::convolution_backward_weights(gradient)});
    } catch (const dnnl::error& e) {
        ATELIER_FAIL(ErrorKind::internal, "gradients of a convolution {} -> {} of {} x {}, kernel {}: {}", s.in_channels,
                     s.out_channels, s.height, s.width, s.kernel, e.what());
    }
}

TrainableConvolution::~TrainableConvolution() = default;
TrainableConvolution::TrainableConvolution(TrainableConvolution&&) noexcept = default;

std::int64_t TrainableConvolution::scratch() const {
    const Prepared& p = *prepared_;
    const std::int64_t forward = numbers(p.forward_description.weights_desc()) + numbers(p.forward_description.scratchpad_desc());
    const std::int64_t data = numbers(p.data_description.weights_desc()) + numbers(p.data_description.scratchpad_desc());
    const std::int64_t weights = numbers(p.weights_description.diff_weights_desc()) + numbers(p.given) +
                                 numbers(p.weights_description.diff_bias_desc()) + numbers(p.weights_description.scratchpad_desc());
    return std::max({forward, data, weights});
}

void TrainableConvolution::forward(const float* in, const float* weights, const float* bias, float* out, float* scratch) const {
    cpu::use_one_thread();
    const auto& d = prepared_->forward_description;
    const dnnl::memory laid_out = view(d.weights_desc(), scratch);
    reorder(view(prepared_->given, weights), laid_out);
    prepared_->forward.execute(cpu::stream(), Arguments{{DNNL_ARG_SRC, view(d.src_desc(), in)},
                                                        {DNNL_ARG_WEIGHTS, laid_out},
                                                        {DNNL_ARG_BIAS, view(d.bias_desc(), bias)},
                                                        {DNNL_ARG_DST, view(d.dst_desc(), out)},
                                                        {DNNL_ARG_SCRATCHPAD, view(d.scratchpad_desc(), scratch + numbers(d.weights_desc()))}});
    cpu::stream().wait();
}

void TrainableConvolution::backward(const float* in, const float* weights, const float* d_out, float* d_in, float* d_weights,
                                    float* d_bias, float* scratch) const {
    cpu::use_one_thread();
    if (d_in != nullptr) {
        const auto& d = prepared_->data_description;
        const dnnl::memory laid_out = view(d.weights_desc(), scratch);
        reorder(view(prepared_->given, weights), laid_out);
        prepared_->backward_data.execute(
            cpu::stream(), Arguments{{DNNL_ARG_DIFF_DST, view(d.diff_dst_desc(), d_out)},
                                     {DNNL_ARG_WEIGHTS, laid_out},
                                     {DNNL_ARG_DIFF_SRC, view(d.diff_src_desc(), d_in)},
                                     {DNNL_ARG_SCRATCHPAD, view(d.scratchpad_desc(), scratch + numbers(d.weights_desc()))}});
        cpu::stream().wait();
    }
    const auto& d = prepared_->weights_description;
    float* bias = scratch + numbers(d.diff_weights_desc());
    float* plain_weights = bias + numbers(d.diff_bias_desc());
    float* pad = plain_weights + numbers(prepared_->given);
    const dnnl::memory laid_out = view(d.diff_weights_desc(), scratch);
    prepared_->backward_weights.execute(cpu::stream(), Arguments{{DNNL_ARG_SRC, view(d.src_desc(), in)},
                                                                 {DNNL_ARG_DIFF_DST, view(d.diff_dst_desc(), d_out)},
                                                                 {DNNL_ARG_DIFF_WEIGHTS, laid_out},
                                                                 {DNNL_ARG_DIFF_BIAS, view(d.diff_bias_desc(), bias)},
                                                                 {DNNL_ARG_SCRATCHPAD, view(d.scratchpad_desc(), pad)}});
    reorder(laid_out, view(prepared_->given, plain_weights));
    cpu::stream().wait();
    const std::int64_t count = shape_.out_channels * shape_.in_channels * shape_.kernel * shape_.kernel;
    for (std::int64_t i = 0; i < count; ++i) d_weights[i] += plain_weights[i];
    for (std::int64_t i = 0; i < shape_.out_channels; ++i) d_bias[i] += bias[i];
}

}  // namespace atelier::ops
