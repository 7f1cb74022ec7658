#include "pipeline/micro_batch.hpp"

#include <algorithm>

#include "core/device.hpp"
#include "core/numbers.hpp"
#include "core/parallel.hpp"

namespace atelier::pipeline {

std::size_t prompts_together(std::int64_t micro_batch, std::int64_t each, const dit::Grid& target) {
    constexpr std::int64_t most_tokens = 1024;
    return static_cast<std::size_t>(std::max<std::int64_t>(1, std::min(micro_batch / each, most_tokens / (each * target.tokens()))));
}

MicroBatch::MicroBatch(const dit::Dit& dit, const dit::Grid& target, int size, Arena& arena) : device_(dit.device()) {
    ATELIER_CHECK_USAGE(dit.config().causal_condition, "training needs a model with causal_condition = true");
    const Shape shape{size, target.tokens(), dit.config().out_channels};
    x = arena.take_f32(shape, device_);
    v = take_states(arena);
    host_noise_ = arena.take_f32(shape);
    noise = device_ == Device::cpu ? host_noise_ : take_states(arena);
    next = take_state(arena);
    times_.resize(static_cast<std::size_t>(size));
    keys_.resize(static_cast<std::size_t>(size));
}

void MicroBatch::load(std::span<const float> states, std::int64_t first, std::int64_t per_member, std::int64_t k) const {
    for (std::int64_t b = 0; b < size(); ++b) transfer(stored(states, (first + b) * per_member + k), member(x, b));
}

// A member a thread: at 1024² it has 2^18 numbers, 8 ms.
void MicroBatch::draw_numbers() const {
    parallel_for(size(), 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t b = begin; b < end; ++b) fill_normal(keys_[static_cast<std::size_t>(b)], numbers(member(host_noise_, b)));
    });
    transfer(host_noise_, noise);
}

std::span<const float> MicroBatch::bring(const Tensor& from, const Tensor& room) const {
    if (device_ == Device::cpu) return numbers(from);
    transfer(from, room);
    return numbers(room);
}

}  // namespace atelier::pipeline
