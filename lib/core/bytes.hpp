#pragma once

#include <algorithm>
#include <cstddef>

namespace atelier {

/// Bytes of host memory and of a device's.
struct Bytes {
    std::size_t host = 0, device = 0;
    Bytes() = default;
    Bytes(std::size_t in_host_memory, std::size_t on_device = 0) : host(in_host_memory), device(on_device) {}
    std::size_t all() const { return host + device; }
    Bytes& operator+=(const Bytes& other) {
        host += other.host;
        device += other.device;
        return *this;
    }
    friend Bytes operator+(Bytes a, const Bytes& b) { return a += b; }
    friend Bytes operator-(const Bytes& a, const Bytes& b) { return {a.host - b.host, a.device - b.device}; }
    bool operator==(const Bytes&) const = default;
};

/// What holds either.
inline Bytes larger(const Bytes& a, const Bytes& b) { return {std::max(a.host, b.host), std::max(a.device, b.device)}; }

}  // namespace atelier
