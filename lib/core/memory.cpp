#include "core/memory.hpp"

#include <cpuid.h>
#include <fmt/format.h>
#include <malloc.h>

#include <algorithm>
#include <fstream>

namespace atelier {
namespace {

std::size_t status_kib(const std::string& key) {
    std::ifstream in("/proc/self/status");
    for (std::string line; std::getline(in, line);)
        if (line.starts_with(key + ":")) return std::stoul(line.substr(key.size() + 1));
    return 0;
}

using Kind = std::size_t Bytes::*;

std::string list(const MemoryPlan::Entries& entries, Kind kind) {
    std::string text;
    for (const auto& [what, bytes] : entries)
        if (bytes.*kind > 0)
            text += fmt::format("{}{} {:.1f}", text.empty() ? "" : ", ", what, static_cast<double>(bytes.*kind) / (1 << 20));
    return text;
}

std::string describe(const MemoryPlan& plan, Kind kind) {
    std::string text = fmt::format("{:.1f} MiB: {}", static_cast<double>(plan.total().*kind) / (1 << 20), list(plan.held(), kind));
    for (const auto& [phase, entries] : plan.phases())
        if (const std::string more = list(entries, kind); !more.empty()) text += fmt::format("; {}: {}", phase, more);
    return text;
}

// What oneDNN (its code, kernels generated at run time, packed operands), HDF5 (its code, caches) and
// the allocator come to hold once they work, measured: docs/performance.md, "Memory". oneDNN's
// kernels for AVX-512 are the larger; where there is AMX products are not oneDNN's.
std::size_t libraries_at_work() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    const bool has_amx_bf16 = __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d >> 22 & 1) != 0;
    return std::size_t{has_amx_bf16 ? 28U : __builtin_cpu_supports("avx512f") ? 41U : 36U} << 19;
}

// What a device holds of which no other entry of a plan says anything. None of it is measured (docs/gpu.md): sizes are the code's, or guesses.
constexpr std::size_t device_libraries =
    // The context, and the code of this backend, cuBLASLt and cuDNN as far as it is loaded: 0.6 GiB.
    (std::size_t{614} << 20) +
    // The workspace of products (lib/ops/cuda/products.cpp).
    (std::size_t{64} << 20) +
    // Scratch memory of libraries: of convolutions, which ask for most, as much as they get as a rule (cudnn_convolution.cpp). Attention's gradient
    // has a room that is planned with activations.
    (std::size_t{1} << 30) +
    // Scratch memory of operations: the largest is a picture framed by zeros, of 1024 x 1024 with the encoder's 96 channels in fp32.
    (std::size_t{1025} * 1025 * 96 * sizeof(float));

}  // namespace

std::size_t resident_bytes() { return status_kib("VmRSS") * 1024; }
std::size_t peak_resident_bytes() { return status_kib("VmHWM") * 1024; }

void return_freed_memory() {
    // glibc raises its threshold for separate mappings with every large block that is freed, and
    // then keeps such blocks.
    mallopt(M_MMAP_THRESHOLD, 2 << 20);
    mallopt(M_TRIM_THRESHOLD, 2 << 20);
}

void return_holes() { malloc_trim(0); }

MemoryPlan::MemoryPlan() {
    held_.emplace_back("program", resident_bytes());
    held_.emplace_back("libraries at work", libraries_at_work());
}

void MemoryPlan::hold(const std::string& what, const Bytes& bytes) {
    if (bytes.all() > 0) held_.emplace_back(what, bytes);
}

void MemoryPlan::hold_of_libraries(const std::string& what, std::size_t device_bytes) {
    hold(what, Bytes(0, device_bytes));
    libraries_ += device_bytes;
}

void MemoryPlan::hold_device_libraries() { hold_of_libraries("libraries on the device", device_libraries); }

void MemoryPlan::hold_during(const std::string& phase, const std::string& what, const Bytes& bytes) {
    if (bytes.all() == 0) return;
    auto found = std::find_if(phases_.begin(), phases_.end(),
                              [&](const auto& entry) { return entry.first == phase; });
    if (found == phases_.end()) found = phases_.insert(phases_.end(), {phase, {}});
    found->second.emplace_back(what, bytes);
}

Bytes MemoryPlan::sum(const Entries& entries) {
    Bytes bytes;
    for (const auto& entry : entries) bytes += entry.second;
    return bytes;
}

Bytes MemoryPlan::total() const {
    Bytes largest;
    for (const auto& [phase, entries] : phases_) largest = larger(largest, sum(entries));
    return sum(held_) + largest;
}

std::string MemoryPlan::str() const {
    const std::string host = describe(*this, &Bytes::host);
    return total().device == 0 ? host : host + "; on the device " + describe(*this, &Bytes::device);
}

}  // namespace atelier
