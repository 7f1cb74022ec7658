#include "core/arena.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace atelier {

Arena Arena::measuring(std::string name) {
    Arena arena;
    arena.name_ = std::move(name);
    arena.measuring_ = true;
    return arena;
}

Arena::Arena(std::string name, std::size_t bytes) : name_(std::move(name)), capacity_(bytes) {
    if (bytes == 0) return;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ATELIER_CHECK_IO(memory != MAP_FAILED, "cannot allocate {} bytes for the {} arena: {}", bytes, name_,
                     std::strerror(errno));
    base_ = static_cast<std::byte*>(memory);
}

Arena::~Arena() {
    if (base_ != nullptr) munmap(base_, capacity_);
}

Arena::Arena(Arena&& other) noexcept { *this = std::move(other); }

Arena& Arena::operator=(Arena&& other) noexcept {
    std::swap(name_, other.name_);
    std::swap(base_, other.base_);
    std::swap(capacity_, other.capacity_);
    std::swap(used_, other.used_);
    std::swap(peak_, other.peak_);
    std::swap(measuring_, other.measuring_);
    return *this;
}

Tensor Arena::take(DType dtype, Shape shape) {
    const std::size_t bytes = static_cast<std::size_t>(shape.elements()) * size_of(dtype);
    const std::size_t padded = (bytes + alignment - 1) / alignment * alignment;
    ATELIER_CHECK(measuring_ || used_ + padded <= capacity_,
                  "the {} arena was planned for {} bytes, {} are in use and {} more were asked for", name_,
                  capacity_, used_, padded);
    // A measuring arena hands out addresses that must never be read.
    std::byte* address = measuring_ ? reinterpret_cast<std::byte*>(alignment) : base_ + used_;
    used_ += padded;
    peak_ = std::max(peak_, used_);
    return Tensor(address, dtype, shape);
}

void Arena::release(std::size_t mark) {
    ATELIER_CHECK(mark <= used_, "arena {} released to {} beyond its {} bytes in use", name_, mark, used_);
    used_ = mark;
}

}  // namespace atelier
