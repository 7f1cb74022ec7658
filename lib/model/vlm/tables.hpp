#pragma once

#include "core/device.hpp"
#include "model/vlm/geometry.hpp"

// What geometry.hpp computes in host memory, used where the model runs.
namespace atelier::vlm {

/// The first `rows` of both tables as `fill(cosine, sine)` computes them. `host_cosine`, `host_sine`: room for it in host memory, used
/// where the tables are on a device.
template <typename Fill>
void fill_tables(std::int64_t rows, const Tensor& cosine, const Tensor& sine, const Tensor& host_cosine, const Tensor& host_sine, Fill fill) {
    const Shape shape{rows, cosine.size(1)};
    const bool here = cosine.device() == Device::cpu;
    const Tensor c = here ? cosine.slice(0, rows) : Tensor::of(host_cosine.f32(), shape);
    const Tensor s = here ? sine.slice(0, rows) : Tensor::of(host_sine.f32(), shape);
    fill(c.f32(), s.f32());
    transfer(c, cosine.slice(0, rows));
    transfer(s, sine.slice(0, rows));
}

/// Rows of `to` += blends of rows of `from`. `corners`, `shares` [rows, 4]: room where the model runs, used on a device.
void add_blend(const PositionBlend& blend, const Tensor& from, const Tensor& to, const Tensor& corners, const Tensor& shares);

}  // namespace atelier::vlm
