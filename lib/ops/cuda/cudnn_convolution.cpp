#include "ops/cuda/cudnn_convolution.hpp"

#include <limits>
#include <tuple>

#include "ops/cuda/cudnn_graph.hpp"

namespace atelier::ops::cuda {
namespace {

enum PictureUid : std::int64_t { uid_x = 1, uid_w, uid_y };

// Bytes; what a device has to spare beside weights and activations (MemoryPlan's entry for libraries).
constexpr std::int64_t usual_workspace = std::int64_t{1} << 30;

using Dims = std::vector<std::int64_t>;
using Key = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t>;

Key key_of(const ConvolutionShape& s) {
    return {s.in_channels, s.out_channels, s.height, s.width, s.kernel, s.stride, s.pad_begin};
}

/// Dimensions are [batch, channels, rows, columns], memory is channels last.
auto picture(PictureUid uid, std::int64_t channels, std::int64_t height, std::int64_t width) {
    return fe::graph::Tensor_attributes()
        .set_uid(uid)
        .set_dim({1, channels, height, width})
        .set_stride({height * width * channels, 1, width * channels, channels})
        .set_data_type(fe::DataType_t::FLOAT);
}
Dims weight_dims(const ConvolutionShape& s) { return {s.out_channels, s.in_channels, s.kernel, s.kernel}; }
Dims weight_strides(const ConvolutionShape& s) { return {s.kernel * s.kernel * s.in_channels, 1, s.kernel * s.in_channels, s.in_channels}; }

template <typename Attributes>
Attributes geometry(const ConvolutionShape& s, Attributes attributes) {
    ATELIER_CHECK(s.pad_begin == s.pad_end, "the library's fp32 convolutions pad both sides alike, found {} and {}", s.pad_begin, s.pad_end);
    attributes.set_padding({s.pad_begin, s.pad_begin})
        .set_stride({s.stride, s.stride})
        .set_dilation({1, 1});
    return attributes;
}

/// The library's first choice of what takes at most so many bytes of workspace, or why it has none.
template <typename Describe>
fe::error_t choose_plan(CudnnPlan& plan, std::int64_t workspace, const Describe& describe) {
    fe::graph::Graph& graph = *plan.graph;
    graph.set_io_data_type(fe::DataType_t::FLOAT)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
    describe(graph);
    fe::error_t status = graph.validate();
    const auto then = [&](const auto& step) {
        if (status.is_good()) status = step();
    };
    then([&] { return graph.build_operation_graph(cudnn_handle()); });
    then([&] { return graph.create_execution_plans({fe::HeurMode_t::A, fe::HeurMode_t::FALLBACK}); });
    // As exact as the CPU's, and the same bits each time.
    graph.deselect_numeric_notes({fe::NumericalNote_t::TENSOR_CORE, fe::NumericalNote_t::NONDETERMINISTIC, fe::NumericalNote_t::DOWN_CONVERT_INPUTS,
                                  fe::NumericalNote_t::REDUCED_PRECISION_REDUCTION, fe::NumericalNote_t::FFT, fe::NumericalNote_t::WINOGRAD,
                                  fe::NumericalNote_t::WINOGRAD_TILE_4x4, fe::NumericalNote_t::WINOGRAD_TILE_6x6,
                                  fe::NumericalNote_t::WINOGRAD_TILE_13x13});
    graph.deselect_workspace_greater_than(workspace);
    then([&] { return graph.check_support(); });
    then([&] { return graph.build_plans(); });
    then([&] { return graph.get_workspace_size(plan.workspace); });
    return status;
}

/// Within `usual_workspace` where the library has anything, else with whatever it asks for.
template <typename Describe>
CudnnPlan make_plan(const char* what, const ConvolutionShape& s, const Describe& describe) {
    fe::error_t status;
    for (const std::int64_t workspace : {usual_workspace, std::numeric_limits<std::int64_t>::max()}) {
        CudnnPlan plan;  // a graph keeps what was deselected
        status = choose_plan(plan, workspace, describe);
        if (status.is_good()) return plan;
    }
    ATELIER_FAIL(ErrorKind::internal,
                 "cuDNN has no deterministic fp32 algorithm for {}: a picture of {} x {}, {} channels to {}, kernel {}, stride {}, {} zeros around: {}", what,
                 s.height, s.width, s.in_channels, s.out_channels, s.kernel, s.stride, s.pad_begin, status.get_message());
}

template <typename Make>
const CudnnPlan& kept(std::map<Key, CudnnPlan>& plans, const ConvolutionShape& shape, Make make) {
    auto found = plans.find(key_of(shape));
    if (found == plans.end()) found = plans.emplace(key_of(shape), make()).first;
    return found->second;
}

void* pointer(const float* data) { return const_cast<float*>(data); }

}  // namespace

void run_convolution(const ConvolutionShape& s, const float* in, const float* weights, float* out) {
    static std::map<Key, CudnnPlan> plans;
    const CudnnPlan& plan = kept(plans, s, [&] {
        return make_plan("a convolution", s, [&](fe::graph::Graph& graph) {
            const auto x = graph.tensor(picture(uid_x, s.in_channels, s.height, s.width));
            const auto w = graph.tensor(
                fe::graph::Tensor_attributes().set_uid(uid_w).set_dim(weight_dims(s)).set_stride(weight_strides(s)).set_data_type(fe::DataType_t::FLOAT));
            const auto y = graph.conv_fprop(x, w, geometry(s, fe::graph::Conv_fprop_attributes()));
            y->set_output(true).set_uid(uid_y).set_dim({1, s.out_channels, s.out_height(), s.out_width()}).set_stride(
                {s.out_height() * s.out_width() * s.out_channels, 1, s.out_width() * s.out_channels, s.out_channels});
        });
    });
    std::unordered_map<std::int64_t, void*> tensors{{uid_x, pointer(in)}, {uid_w, pointer(weights)}, {uid_y, out}};
    plan.run(tensors, "a convolution");
}

void run_convolution_input_gradient(const ConvolutionShape& s, const float* weights, const float* d_out, float* d_in) {
    static std::map<Key, CudnnPlan> plans;
    const CudnnPlan& plan = kept(plans, s, [&] {
        return make_plan("a convolution's gradient by its picture", s, [&](fe::graph::Graph& graph) {
            const auto dy = graph.tensor(picture(uid_y, s.out_channels, s.out_height(), s.out_width()));
            const auto w = graph.tensor(
                fe::graph::Tensor_attributes().set_uid(uid_w).set_dim(weight_dims(s)).set_stride(weight_strides(s)).set_data_type(fe::DataType_t::FLOAT));
            const auto dx = graph.conv_dgrad(dy, w, geometry(s, fe::graph::Conv_dgrad_attributes()));
            dx->set_output(true).set_uid(uid_x).set_dim({1, s.in_channels, s.height, s.width}).set_stride(
                {s.height * s.width * s.in_channels, 1, s.width * s.in_channels, s.in_channels});
        });
    });
    std::unordered_map<std::int64_t, void*> tensors{{uid_y, pointer(d_out)}, {uid_w, pointer(weights)}, {uid_x, d_in}};
    plan.run(tensors, "a convolution's gradient");
}

void run_convolution_weight_gradient(const ConvolutionShape& s, const float* in, const float* d_out, float* d_weights) {
    static std::map<Key, CudnnPlan> plans;
    const CudnnPlan& plan = kept(plans, s, [&] {
        return make_plan("a convolution's gradient by its weights", s, [&](fe::graph::Graph& graph) {
            const auto x = graph.tensor(picture(uid_x, s.in_channels, s.height, s.width));
            const auto dy = graph.tensor(picture(uid_y, s.out_channels, s.out_height(), s.out_width()));
            const auto dw = graph.conv_wgrad(dy, x, geometry(s, fe::graph::Conv_wgrad_attributes()));
            dw->set_output(true).set_uid(uid_w).set_dim(weight_dims(s)).set_stride(weight_strides(s));
        });
    });
    std::unordered_map<std::int64_t, void*> tensors{{uid_x, pointer(in)}, {uid_y, pointer(d_out)}, {uid_w, d_weights}};
    plan.run(tensors, "a convolution's gradient");
}

}  // namespace atelier::ops::cuda
