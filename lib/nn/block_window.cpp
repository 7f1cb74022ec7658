#include "nn/block_window.hpp"

#include <algorithm>
#include <utility>

namespace atelier::nn {

BlockWindow::BlockWindow(const Partition& partition, int blocks, AfterLast after_last, Arena& arena, Device device, DType dtype)
    : partition_(&partition), blocks_(blocks), after_last_(after_last) {
    std::int64_t largest = 0;
    for (const Partition::Segment& s : partition.segments())
        if (s.block >= 0 && s.block < blocks) largest = std::max(largest, s.share * partition.ranks());
    for (Slot& slot : slots_) slot.memory = arena.take(dtype, {largest}, device);
}

bool BlockWindow::comes(int row) const {
    const int block = partition_->table().spec(row).block;
    return block >= 0 && block < blocks_ && !(rounds() && !partition_->table().is_operand(row));
}

void BlockWindow::hold_rows(Arena& arena, Device device) {
    const ParameterTable& table = partition_->table();
    rows_.emplace(table, [&](int row) { return table.spec(row).block < blocks_ && !comes(row); }, arena, device, rounds());
}

void BlockWindow::settle() {
    if (std::exchange(is_under_way_, false)) finish();
}

Tensor BlockWindow::forget() {
    settle();
    for (Slot& slot : slots_) slot.block = -1;
    used_ = previous_ = -1;
    return slots_[0].memory;
}

BlockWindow::Slot* BlockWindow::find(int block) {
    for (Slot& slot : slots_)
        if (slot.block == block) return &slot;
    return nullptr;
}

/// -1: none but this one.
int BlockWindow::expected_after(int block) const {
    const int last = blocks_ - 1;
    if (last == 0) return -1;
    if (block == last) return after_last_ == AfterLast::first ? 0 : last - 1;
    return block == 0 || block > previous_ ? block + 1 : block - 1;
}

void BlockWindow::acquire(int block) {
    ATELIER_CHECK(block < blocks_, "block {} of {} was acquired", block, blocks_);
    ATELIER_CHECK(used_ < 0, "block {} was acquired while block {} was in use", block, used_);
    settle();
    used_ = block;
    Slot* slot = find(block);
    if (slot == nullptr) {
        // The block used last is nearer to what comes next only where the direction turns; it is overwritten last.
        slot = slots_[0].block == previous_ ? &slots_[1] : &slots_[0];
        slot->block = block;
        start(partition_->of_block(block), slot->memory);
        finish();
    }
    if (block == previous_) return;  // again: that says no direction, and what comes next came with the first time
    const int next = expected_after(block);
    previous_ = block;
    if (next < 0 || find(next) != nullptr) return;
    Slot& other = slot == &slots_[0] ? slots_[1] : slots_[0];
    other.block = next;
    is_under_way_ = true;
    start(partition_->of_block(next), other.memory);
}

void BlockWindow::release(int block) {
    ATELIER_CHECK(used_ == block, "block {} was released, block {} is in use", block, used_);
    used_ = -1;
}

void BlockWindow::check_use(int index) const {
    const ParameterSpec& spec = partition_->table().spec(index);
    ATELIER_CHECK(spec.block < 0 || spec.block == used_, "{} of block {} is wanted, block {} is in use", spec.name, spec.block, used_);
}

Tensor BlockWindow::row(int index) {
    check_use(index);
    if (!comes(index)) return rows_ ? rows_->as_read(index) : resident_->row(index);
    const ParameterSpec& spec = partition_->table().spec(index);
    const std::int64_t at = partition_->table().offset(index) - partition_->of_block(spec.block).begin;
    return find(spec.block)->memory.slice(at, at + spec.shape.elements()).reshaped(spec.shape);
}

Tensor BlockWindow::numbers(int index) {
    if (!rounds()) return row(index);
    check_use(index);
    return rows_->numbers(index);
}

}  // namespace atelier::nn
