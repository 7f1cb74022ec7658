#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace atelier::testing {

/// A kernel or a copy on the device; times in ns.
struct DeviceWork {
    std::string name;
    std::uint64_t start = 0, end = 0;
};

struct KernelSummary {
    struct Kernel {
        std::string name;
        std::int64_t count = 0;
        double sum = 0, fastest = 0;  ///< ns
    };
    std::vector<Kernel> kernels;          ///< longest sum first
    double busy = 0, gaps = 0, waits = 0;  ///< ns: something runs; nothing does, shortly; nothing does for longer than `longest_gap`
};

// What is longer is the host's doing, a wait for results between two series of calls.
constexpr std::uint64_t longest_gap = 200'000;

/// Of the second half of the time: algorithms are chosen, graphs recorded.
inline KernelSummary summarise(std::vector<DeviceWork> work) {
    KernelSummary s;
    if (work.empty()) return s;
    std::sort(work.begin(), work.end(), [](const DeviceWork& a, const DeviceWork& b) { return a.start < b.start; });
    const std::uint64_t half = work.front().start + (work.back().start - work.front().start) / 2;
    std::map<std::string, KernelSummary::Kernel> kernels;
    std::uint64_t end = 0;
    for (const DeviceWork& w : work) {
        if (w.start < half) continue;
        const auto time = static_cast<double>(w.end - w.start);
        KernelSummary::Kernel& k = kernels[w.name];
        k.fastest = k.count++ == 0 ? time : std::min(k.fastest, time);
        k.sum += time;
        if (end != 0 && w.start > end) (w.start - end > longest_gap ? s.waits : s.gaps) += static_cast<double>(w.start - end);
        if (w.end > end) s.busy += static_cast<double>(w.end - std::max(w.start, end));
        end = std::max(end, w.end);
    }
    for (auto& [name, k] : kernels) {
        k.name = name;
        s.kernels.push_back(k);
    }
    std::sort(s.kernels.begin(), s.kernels.end(), [](const auto& a, const auto& b) { return a.sum > b.sum; });
    return s;
}

}  // namespace atelier::testing
