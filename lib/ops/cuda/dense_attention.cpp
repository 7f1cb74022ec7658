#include "ops/cuda/dense_attention.hpp"

#include <array>

#include "ops/cuda/cudnn_graph.hpp"

namespace atelier::ops::cuda {
namespace {

enum Uid : std::int64_t { uid_q = 1, uid_k, uid_v, uid_out, uid_stats, uid_dout, uid_dq, uid_dk, uid_dv };

using Dims = std::vector<std::int64_t>;

std::shared_ptr<fe::graph::Tensor_attributes> tensor(fe::graph::Graph& graph, const char* name, Uid uid, Dims dims, Dims strides,
                                                     fe::DataType_t type = fe::DataType_t::BFLOAT16) {
    return graph.tensor(
        fe::graph::Tensor_attributes().set_name(name).set_uid(uid).set_dim(std::move(dims)).set_stride(std::move(strides)).set_data_type(type));
}

// Dimensions are [batch, heads, tokens, channels] whatever the order in memory.
Dims q_dims(const DenseAttention& s) { return {s.batch, s.heads, s.queries, s.head_dim}; }
/// Of tokens of all heads that are `stride` apart.
Dims q_strides(const DenseAttention& s, std::int64_t stride) { return {s.entry_queries * stride, s.head_dim, stride, 1}; }
Dims kv_dims(const DenseAttention& s) { return {s.batch, s.kv_heads, s.keys, s.head_dim}; }
Dims kv_strides(const DenseAttention& s, std::int64_t tokens, std::int64_t stride) { return {tokens * stride, s.head_dim, stride, 1}; }
Dims stats_dims(const DenseAttention& s) { return {s.batch, s.heads, s.queries, 1}; }
Dims stats_strides(const DenseAttention& s) { return {s.heads * s.queries, s.queries, 1, 1}; }

void set_types(fe::graph::Graph& graph) {
    graph.set_io_data_type(fe::DataType_t::BFLOAT16)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
}

template <typename Attributes>
void set_mask(const DenseAttention& s, Attributes& attributes) {
    attributes.set_attn_scale(s.scale);
    if (!s.causal) return;
    // The last query sees the last key.
    attributes.set_diagonal_alignment(fe::DiagonalAlignment_t::BOTTOM_RIGHT).set_diagonal_band_right_bound(0);
}

/// q, k, v
std::array<std::shared_ptr<fe::graph::Tensor_attributes>, 3> inputs_of(fe::graph::Graph& graph, const DenseAttention& s) {
    const Dims strides = kv_strides(s, s.entry_keys, s.kv_stride);
    return {tensor(graph, "q", uid_q, q_dims(s), q_strides(s, s.q_stride)), tensor(graph, "k", uid_k, kv_dims(s), strides),
            tensor(graph, "v", uid_v, kv_dims(s), strides)};
}

CudnnPlan make_forward(const DenseAttention& s) {
    CudnnPlan plan;
    fe::graph::Graph& graph = *plan.graph;
    set_types(graph);
    const auto [q, k, v] = inputs_of(graph, s);
    auto attributes = fe::graph::SDPA_attributes().set_name("attention").set_generate_stats(true);
    set_mask(s, attributes);
    const auto [out, stats] = graph.sdpa(q, k, v, attributes);
    out->set_output(true).set_uid(uid_out).set_dim(q_dims(s)).set_stride(q_strides(s, s.out_stride));
    stats->set_output(true).set_uid(uid_stats).set_dim(stats_dims(s)).set_stride(stats_strides(s)).set_data_type(fe::DataType_t::FLOAT);
    plan.build("attention");
    return plan;
}

CudnnPlan make_backward(const DenseAttention& s) {
    CudnnPlan plan;
    fe::graph::Graph& graph = *plan.graph;
    set_types(graph);
    const auto [q, k, v] = inputs_of(graph, s);
    const Dims q_gradient = q_strides(s, s.q_gradient_stride), kv_gradient = kv_strides(s, s.keys, s.kv_gradient_stride);
    const auto out = tensor(graph, "out", uid_out, q_dims(s), q_strides(s, s.out_stride));
    const auto dout = tensor(graph, "dout", uid_dout, q_dims(s), q_gradient);
    const auto stats = tensor(graph, "stats", uid_stats, stats_dims(s), stats_strides(s), fe::DataType_t::FLOAT);
    auto attributes = fe::graph::SDPA_backward_attributes().set_name("attention_backward").set_deterministic_algorithm(true);
    set_mask(s, attributes);
    const auto [dq, dk, dv] = graph.sdpa_backward(q, k, v, out, dout, stats, attributes);
    dq->set_output(true).set_uid(uid_dq).set_dim(q_dims(s)).set_stride(q_gradient);
    dk->set_output(true).set_uid(uid_dk).set_dim(kv_dims(s)).set_stride(kv_gradient);
    dv->set_output(true).set_uid(uid_dv).set_dim(kv_dims(s)).set_stride(kv_gradient);
    plan.build("the gradient of attention");
    return plan;
}

const CudnnPlan& plan_of(std::map<DenseAttention, CudnnPlan>& plans, const DenseAttention& shape, CudnnPlan (*make)(const DenseAttention&)) {
    auto found = plans.find(shape);
    if (found == plans.end()) found = plans.emplace(shape, make(shape)).first;
    return found->second;
}

void* pointer(const void* data) { return const_cast<void*>(data); }

}  // namespace

void dense_attention(const DenseAttention& shape, const std::uint16_t* q, const std::uint16_t* k, const std::uint16_t* v, std::uint16_t* out,
                     float* stats) {
    static std::map<DenseAttention, CudnnPlan> plans;
    std::unordered_map<std::int64_t, void*> tensors{
        {uid_q, pointer(q)}, {uid_k, pointer(k)}, {uid_v, pointer(v)}, {uid_out, out}, {uid_stats, stats}};
    plan_of(plans, shape, make_forward).run(tensors, "attention");
}

void dense_attention_backward(const DenseAttention& shape, const std::uint16_t* q, const std::uint16_t* k, const std::uint16_t* v,
                              const std::uint16_t* out, const float* stats, const std::uint16_t* dout, std::uint16_t* dq, std::uint16_t* dk,
                              std::uint16_t* dv, std::span<std::byte> room) {
    static std::map<DenseAttention, CudnnPlan> plans;
    std::unordered_map<std::int64_t, void*> tensors{{uid_q, pointer(q)},         {uid_k, pointer(k)},       {uid_v, pointer(v)},
                                                    {uid_out, pointer(out)},     {uid_dout, pointer(dout)}, {uid_stats, pointer(stats)},
                                                    {uid_dq, dq},                {uid_dk, dk},              {uid_dv, dv}};
    plan_of(plans, shape, make_backward).run(tensors, "the gradient of attention", room);
}

}  // namespace atelier::ops::cuda
