// A library that the driver loads into a program (CUDA_INJECTION64_PATH=.../libkernel_times.so): CUPTI tells it when each kernel and copy ran, and
// at the program's end it prints the device time of each kernel and of the gaps between them.
#include <cupti.h>
#include <cxxabi.h>
#include <fmt/format.h>

#include <cstdlib>
#include <mutex>

#include "gpu/kernel_summary.hpp"

namespace {

using namespace atelier::testing;

std::mutex mutex;
std::vector<DeviceWork>& work() {
    static auto& all = *new std::vector<DeviceWork>;  // outlives what runs at the end of the program
    return all;
}

void check(CUptiResult result, const char* what) {
    if (result == CUPTI_SUCCESS) return;
    const char* text = "";
    cuptiGetResultString(result, &text);
    fmt::print("kernel times: {} failed: {}\n", what, text);
}

std::string demangled(const char* name) {
    int status = 0;
    char* readable = abi::__cxa_demangle(name, nullptr, nullptr, &status);
    std::string text = status == 0 ? readable : name;
    std::free(readable);
    return text;
}

constexpr std::size_t buffer_bytes = std::size_t{8} << 20;

void CUPTIAPI give_buffer(std::uint8_t** buffer, std::size_t* bytes, std::size_t* most_records) {
    *buffer = static_cast<std::uint8_t*>(std::aligned_alloc(8, buffer_bytes));
    *bytes = *buffer == nullptr ? 0 : buffer_bytes;
    *most_records = 0;
}

void CUPTIAPI take_buffer(CUcontext, std::uint32_t, std::uint8_t* buffer, std::size_t, std::size_t valid_bytes) {
    const std::scoped_lock lock(mutex);
    CUpti_Activity* record = nullptr;
    while (valid_bytes > 0 && cuptiActivityGetNextRecord(buffer, valid_bytes, &record) == CUPTI_SUCCESS) {
        if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
            const auto* k = reinterpret_cast<const CUpti_ActivityKernel10*>(record);
            work().push_back({fmt::format("({}, {}, {}) ({}) {}", k->gridX, k->gridY, k->gridZ, k->blockX, k->name), k->start, k->end});
        } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
            const auto* c = reinterpret_cast<const CUpti_ActivityMemcpy6*>(record);
            work().push_back({"a copy", c->start, c->end});
        } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMSET) {
            const auto* c = reinterpret_cast<const CUpti_ActivityMemset4*>(record);
            work().push_back({"zeroing", c->start, c->end});
        }
    }
    std::free(buffer);
}

void print_summary() {
    check(cuptiActivityFlushAll(1), "the last records");
    const std::scoped_lock lock(mutex);
    const KernelSummary s = summarise(std::move(work()));
    for (const KernelSummary::Kernel& k : s.kernels) {
        const std::size_t name = k.name.rfind(' ') + 1;
        fmt::print("{:10.1f} us = {:5} x {:9.2f}, fastest {:9.2f}  {}{}\n", k.sum / 1e3, k.count, k.sum / 1e3 / static_cast<double>(k.count),
                   k.fastest / 1e3, k.name.substr(0, name), demangled(k.name.c_str() + name).substr(0, 160));
    }
    if (s.busy > 0) fmt::print("result: gaps between kernels = {:.3g} % of {:.4g} ms (waits of the host beside: {:.4g} ms)\n", 100 * s.gaps / (s.busy + s.gaps),
                               (s.busy + s.gaps) / 1e6, s.waits / 1e6);
    std::fflush(stdout);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int InitializeInjection() {
    check(cuptiActivityRegisterCallbacks(give_buffer, take_buffer), "registering");
    for (const CUpti_ActivityKind kind : {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY, CUPTI_ACTIVITY_KIND_MEMSET})
        check(cuptiActivityEnable(kind), "asking for kernels and copies");
    std::atexit(print_summary);
    return 1;
}
