#include "nn/streamed.hpp"

#include <algorithm>
#include <utility>

namespace atelier::nn {

StreamedWeights::StreamedWeights(const ParameterTable& table, const Tensor& host, Arena& arena) : table_(&table), host_(host) {
    std::int64_t largest = 0;
    for (int row = 0; row < table.size(); ++row) {
        const int block = table.spec(row).block;
        if (segments_.empty() || segments_.back().block != block) segments_.push_back({block, table.offset(row), 0});
        segments_.back().end = row + 1 < table.size() ? table.offset(row + 1) : table.flat_size();
    }
    for (const Segment& s : segments_) {
        resident_.push_back(s.block < 0 ? arena.take_f32({s.end - s.begin}, Device::cuda) : Tensor());
        if (s.block >= 0) largest = std::max(largest, s.end - s.begin);
    }
    for (Slot& slot : slots_) slot.memory = arena.take_f32({largest}, Device::cuda);
}

StreamedWeights::~StreamedWeights() {
    if (!is_pinned_) return;
    device_memory().synchronise();
    device_memory().unpin(host_.raw());
}

void StreamedWeights::refresh() {
    if (!std::exchange(is_pinned_, true)) device_memory().pin(host_.raw(), host_.bytes());
    for (Slot& slot : slots_) slot.block = -1;
    used_ = previous_ = -1;
    for (std::size_t i = 0; i < segments_.size(); ++i)
        if (!resident_[i].empty()) upload(segments_[i], resident_[i]);
    device_memory().compute_after_uploads();
}

const StreamedWeights::Segment& StreamedWeights::of_block(int block) const {
    return *std::find_if(segments_.begin(), segments_.end(), [&](const Segment& s) { return s.block == block; });
}

void StreamedWeights::upload(const Segment& s, const Tensor& to) {
    // What was computed with the memory's former numbers comes first.
    device_memory().uploads_after_compute();
    device_memory().start_upload(to.raw(), host_.f32() + s.begin, static_cast<std::size_t>(s.end - s.begin) * sizeof(float));
}

StreamedWeights::Slot* StreamedWeights::find(int block) {
    for (Slot& slot : slots_)
        if (slot.block == block) return &slot;
    return nullptr;
}

void StreamedWeights::acquire(int block) {
    ATELIER_CHECK(used_ < 0, "block {} was acquired while block {} was in use", block, used_);
    used_ = block;
    Slot* slot = find(block);
    if (slot == nullptr) {
        slot = slots_[0].block == previous_ ? &slots_[1] : &slots_[0];
        slot->block = block;
        upload(of_block(block), slot->memory);
    }
    device_memory().compute_after_uploads();
    const int last = table_->blocks() - 1;
    const int next = last == 0 ? 0 : previous_ >= 0 && block < previous_ && block > 0 ? block - 1 : block == last ? 0 : block + 1;
    previous_ = block;
    if (find(next) != nullptr) return;
    Slot& other = slot == &slots_[0] ? slots_[1] : slots_[0];
    other.block = next;
    upload(of_block(next), other.memory);
}

void StreamedWeights::release(int block) {
    ATELIER_CHECK(used_ == block, "block {} was released, block {} is in use", block, used_);
    used_ = -1;
}

float* StreamedWeights::row(int index) {
    const int block = table_->spec(index).block;
    const std::int64_t at = table_->offset(index);
    if (block < 0)
        for (std::size_t i = 0; i < segments_.size(); ++i)
            if (at >= segments_[i].begin && at < segments_[i].end) return resident_[i].f32() + (at - segments_[i].begin);
    ATELIER_CHECK(block == used_, "{} of block {} is wanted, block {} is in use", table_->spec(index).name, block, used_);
    return find(block)->memory.f32() + (at - of_block(block).begin);
}

}  // namespace atelier::nn
