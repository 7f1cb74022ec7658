#include "model/dit/staging.hpp"

namespace atelier::dit {
namespace {

/// The numbers themselves on the CPU, else a copy of them in `room`.
template <typename T>
Tensor load_numbers(const Dit& dit, const std::vector<T>& numbers, std::int64_t first, Shape shape, const Tensor& room) {
    return bring(dit, Tensor::of(numbers.data() + first, shape), room);
}

}  // namespace

void PassLayout::plan(const Dit& dit, std::int64_t max_tokens, bool prefix, Arena& arena) {
    if (dit.device() == Device::cpu) return;
    const std::int64_t half = dit.config().head_dim / 2;
    cosine_room_ = arena.take_f32({max_tokens, half}, dit.device());
    sine_room_ = arena.take_f32({max_tokens, half}, dit.device());
    if (prefix) source_room_ = arena.take(DType::i32, {max_tokens}, dit.device());
}

void PassLayout::load(const Dit& dit, const Layout& layout, std::int64_t first, std::int64_t count) {
    const std::int64_t half = dit.config().head_dim / 2;
    cosine = load_numbers(dit, layout.cosine, first * half, {count, half}, cosine_room_);
    sine = load_numbers(dit, layout.sine, first * half, {count, half}, sine_room_);
    if (first < layout.prefix_tokens()) source = load_numbers(dit, layout.source, first, {count}, source_room_);
}

}  // namespace atelier::dit
