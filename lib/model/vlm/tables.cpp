#include "model/vlm/tables.hpp"

#include "ops/rows.hpp"

namespace atelier::vlm {

void add_blend(const PositionBlend& blend, const Tensor& from, const Tensor& to, const Tensor& corners, const Tensor& shares) {
    const Shape shape{to.size(0), 4};
    const Tensor row = bring(to.device(), Tensor::of(blend.row.data(), shape), corners);
    const Tensor share = bring(to.device(), Tensor::of(blend.share.data(), shape), shares);
    ops::add_blend_of_rows(to.size(0), to.size(1), row.as<std::int32_t>(), share.f32(), from.f32(), to.f32());
}

}  // namespace atelier::vlm
