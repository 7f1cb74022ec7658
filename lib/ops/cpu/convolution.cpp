#include "ops/convolution.hpp"

#include <cstring>
#include <unordered_map>

#include "core/error.hpp"
#include "ops/cpu/onednn.hpp"

namespace atelier::ops {
namespace {

using cpu::engine, cpu::plain, cpu::use_one_thread, cpu::view;

dnnl::convolution_forward::primitive_desc describe(const ConvolutionShape& s) {
    using Tag = dnnl::memory::format_tag;
    const auto in = plain({1, s.in_channels, s.height, s.width}, Tag::nhwc);
    const auto out = plain({1, s.out_channels, s.out_height(), s.out_width()}, Tag::nhwc);
    const auto weights = plain({s.out_channels, s.in_channels, s.kernel, s.kernel}, Tag::any);
    const auto bias = plain({s.out_channels}, Tag::x);
    const dnnl::memory::dims strides{s.stride, s.stride}, begin{s.pad_begin, s.pad_begin}, end{s.pad_end, s.pad_end};
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
#if DNNL_VERSION_MAJOR >= 3
    return {engine(), dnnl::prop_kind::forward_inference, dnnl::algorithm::convolution_direct, in, weights, bias, out,
            strides, begin, end, attributes};
#else
    return {dnnl::convolution_forward::desc(dnnl::prop_kind::forward_inference, dnnl::algorithm::convolution_direct, in,
                                            weights, bias, out, strides, begin, end),
            attributes, engine()};
#endif
}

}  // namespace

struct Convolution::Prepared {
    dnnl::convolution_forward::primitive_desc description;
    dnnl::convolution_forward primitive;
    dnnl::memory weights, bias;
    bool owns_weights = true;
};

Convolution::Convolution(const ConvolutionShape& shape, const float* weights, const float* bias) : shape_(shape) {
    use_one_thread();
    try {
        auto description = describe(shape);
        const auto given = plain({shape.out_channels, shape.in_channels, shape.kernel, shape.kernel},
                                 dnnl::memory::format_tag::oihw);
        dnnl::memory from = view(given, weights);
        dnnl::memory to(description.weights_desc(), engine());
        dnnl::memory kept_bias(description.bias_desc(), engine());
        dnnl::reorder(from, to).execute(cpu::stream(), from, to);
        cpu::stream().wait();
        std::memcpy(kept_bias.get_data_handle(), bias, static_cast<std::size_t>(shape.out_channels) * sizeof(float));
        prepared_ = std::make_unique<Prepared>(
            Prepared{description, dnnl::convolution_forward(description), std::move(to), std::move(kept_bias)});
    } catch (const dnnl::error& e) {
        ATELIER_FAIL(ErrorKind::internal, "convolution {} -> {} of {} x {}, kernel {}: {}", shape.in_channels,
                     shape.out_channels, shape.height, shape.width, shape.kernel, e.what());
    }
}

Convolution::Convolution(const ConvolutionShape& shape, const Convolution& prepared) : shape_(shape) {
    use_one_thread();
    try {
        auto description = describe(shape);
        ATELIER_CHECK(description.weights_desc() == prepared.prepared_->description.weights_desc(),
                      "weights laid out for {} x {} serve no picture of {} x {}", prepared.shape_.height, prepared.shape_.width,
                      shape.height, shape.width);
        prepared_ = std::make_unique<Prepared>(Prepared{description, dnnl::convolution_forward(description),
                                                        prepared.prepared_->weights, prepared.prepared_->bias, false});
    } catch (const dnnl::error& e) {
        ATELIER_FAIL(ErrorKind::internal, "convolution {} -> {} of {} x {}, kernel {}: {}", shape.in_channels,
                     shape.out_channels, shape.height, shape.width, shape.kernel, e.what());
    }
}

bool shares_weights(const ConvolutionShape& a, const ConvolutionShape& b) {
    use_one_thread();
    return describe(a).weights_desc() == describe(b).weights_desc();
}

Convolution::~Convolution() = default;
Convolution::Convolution(Convolution&&) noexcept = default;

std::size_t Convolution::bytes() const {
    if (!prepared_->owns_weights) return 0;
    return prepared_->description.weights_desc().get_size() + prepared_->description.bias_desc().get_size();
}

std::int64_t Convolution::scratch() const {
    return (static_cast<std::int64_t>(prepared_->description.scratchpad_desc().get_size()) + 3) / 4;
}

void Convolution::run(const float* in, float* out, float* scratch) const {
    use_one_thread();
    const auto& d = prepared_->description;
    const std::unordered_map<int, dnnl::memory> arguments{
        {DNNL_ARG_SRC, view(d.src_desc(), in)},
        {DNNL_ARG_DST, view(d.dst_desc(), out)},
        {DNNL_ARG_WEIGHTS, prepared_->weights},
        {DNNL_ARG_BIAS, prepared_->bias},
        {DNNL_ARG_SCRATCHPAD, view(d.scratchpad_desc(), scratch)}};
    prepared_->primitive.execute(cpu::stream(), arguments);
    cpu::stream().wait();
}

}  // namespace atelier::ops
