#include "core/arena.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/device.hpp"
#include "core/device_turn.hpp"

namespace atelier {

Arena Arena::measuring(std::string name) {
    Arena arena;
    arena.name_ = std::move(name);
    arena.measuring_ = true;
    return arena;
}

Arena::Arena(std::string name, const Bytes& bytes) : name_(std::move(name)) {
    if (bytes.device > 0) check_device_turn();
    if (bytes.host > 0) {
        void* memory = mmap(nullptr, bytes.host, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        ATELIER_CHECK_IO(memory != MAP_FAILED, "cannot allocate {} bytes for the {} arena: {}", bytes.host, name_,
                         std::strerror(errno));
        // Fewer misses of the address translation, a tenth of some products' time. A kernel without them says no, and nothing is lost.
        madvise(memory, bytes.host, MADV_HUGEPAGE);
        host_ = {static_cast<std::byte*>(memory), bytes.host};
    }
    if (bytes.device > 0) device_ = {static_cast<std::byte*>(device_memory().allocate(bytes.device)), bytes.device};
}

Arena::~Arena() {
    if (host_.base != nullptr) munmap(host_.base, host_.capacity);
    if (device_.base != nullptr) device_memory().release(device_.base);
}

Arena::Arena(Arena&& other) noexcept { *this = std::move(other); }

Arena& Arena::operator=(Arena&& other) noexcept {
    std::swap(name_, other.name_);
    std::swap(host_, other.host_);
    std::swap(device_, other.device_);
    std::swap(measuring_, other.measuring_);
    return *this;
}

Tensor Arena::take(DType dtype, Shape shape, Device device) {
    Block& from = device == Device::cpu ? host_ : device_;
    const std::size_t bytes = static_cast<std::size_t>(shape.elements()) * size_of(dtype);
    const std::size_t step = device == Device::cpu ? alignment : device_alignment;
    const std::size_t padded = (bytes + step - 1) / step * step;
    ATELIER_CHECK(measuring_ || from.used + padded <= from.capacity,
                  "the {} arena was planned for {} bytes{}, {} are in use and {} more were asked for", name_,
                  from.capacity, device == Device::cpu ? "" : " of device memory", from.used, padded);
    // A measuring arena hands out addresses that must never be read.
    std::byte* address = measuring_ ? reinterpret_cast<std::byte*>(alignment) : from.base + from.used;
    from.used += padded;
    from.peak = std::max(from.peak, from.used);
    return Tensor(address, dtype, shape, device);
}

void Arena::release(std::size_t mark, Device device) {
    Block& from = device == Device::cpu ? host_ : device_;
    ATELIER_CHECK(mark <= from.used, "arena {} released to {} beyond its {} bytes in use", name_, mark, from.used);
    from.used = mark;
}

void Arena::release(std::size_t mark) {
    release(mark, Device::cpu);
    if (mark == 0) release(0, Device::cuda);
}

}  // namespace atelier
