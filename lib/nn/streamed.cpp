#include "nn/streamed.hpp"

#include <utility>

#include "core/parallel.hpp"
#include "nn/checkpoint_weights.hpp"

namespace atelier::nn {

StreamedWeights::StreamedWeights(const Partition& partition, int blocks, Arena& arena, ops::ProductPrecision precision)
    : BlockWindow(partition, blocks, AfterLast::first, arena, Device::cuda, keeps_bf16(Device::cuda, precision) ? DType::bf16 : DType::f32) {
    ATELIER_CHECK(partition.ranks() == 1, "weights that are cut over {} ranks are not in one rank's memory", partition.ranks());
    hold_rows(arena, Device::cuda);
    std::int64_t end = 0;
    for (int block = 0; block < blocks; ++block) {
        block_at_.push_back(end);
        end += partition.of_block(block).share;
    }
    host_ = arena.take(dtype(), {end});
}

StreamedWeights::~StreamedWeights() {
    if (is_pinned_) device_memory().unpin(host_.raw());
}

void StreamedWeights::load(const io::Safetensors& file, std::span<const std::string> ignorable) {
    load_weights(*rows_, file, ignorable);
    const ParameterTable& table = partition().table();
    const NumbersLoader loader(file, Device::cpu);
    parallel_for(table.size(), 1, [&](std::int64_t begin, std::int64_t end) {
        for (auto row = static_cast<int>(begin); row < end; ++row) {
            if (!comes(row)) continue;
            const ParameterSpec& spec = table.spec(row);
            const std::int64_t at = block_at_[static_cast<std::size_t>(spec.block)] + table.offset(row) - partition().of_block(spec.block).begin;
            loader.load(file.at(spec.name), 0, host_.slice(at, at + spec.shape.elements()));
        }
    });
    if (!std::exchange(is_pinned_, true)) device_memory().pin(host_.raw(), host_.bytes());
    forget();
}

void StreamedWeights::start(const Partition::Segment& s, const Tensor& to) {
    // What was computed with the memory's former numbers comes first.
    device_memory().uploads_after_compute();
    const std::int64_t at = block_at_[static_cast<std::size_t>(s.block)];
    const Tensor from = host_.slice(at, at + s.share);
    device_memory().start_upload(to.raw(), from.raw(), from.bytes());
}

}  // namespace atelier::nn
