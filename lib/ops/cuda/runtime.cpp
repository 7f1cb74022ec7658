// The process's device: stream, memory, scratch.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "ops/cuda/context.hpp"
#include "ops/cuda/device_memory.hpp"
#include "ops/cuda/open_device.hpp"

namespace atelier::ops::cuda {
namespace {

// Host memory goes to the device through two pinned buffers in turn: one is filled while the other is copied.
constexpr std::size_t staging_bytes = std::size_t{32} << 20;

/// memcpy by four threads: one core fills a buffer slower than the bus empties it (6.4 GB/s beside an H200).
void fill(std::byte* to, const std::byte* from, std::size_t bytes) {
    constexpr std::size_t least_share = std::size_t{2} << 20;
    const std::size_t shares = std::clamp<std::size_t>(bytes / least_share, 1, 4);
    const auto copy = [=](std::size_t i) {
        const std::size_t begin = bytes * i / shares, end = bytes * (i + 1) / shares;
        std::memcpy(to + begin, from + begin, end - begin);
    };
    std::vector<std::jthread> helpers;
    for (std::size_t i = 1; i < shares; ++i) helpers.emplace_back(copy, i);
    copy(0);
}

int process_device = 0;

/// A thread's calls go to the first device until it says otherwise: said at its first one.
void choose_device() {
    thread_local const bool chosen = (check(cudaSetDevice(process_device), "taking the device"), true);
    static_cast<void>(chosen);
}

/// Of the device that the thread has chosen.
cudaStream_t make_stream() {
    cudaStream_t made = nullptr;
    check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "a stream");
    return made;
}

/// What gives something back does not throw: where the device no longer works, the error that says so is on its way already, and
/// destructors run because of it.
template <typename Release>
void give_back(Release release) {
    try {
        release();
    } catch (const Error&) {
    }
}

class Memory final : public DeviceMemory {
  public:
    void* allocate(std::size_t bytes) override {
        choose_device();
        void* taken = nullptr;
        allocated(cudaMalloc(&taken, std::max<std::size_t>(bytes, 1)), bytes);
        zero(taken, bytes);
        taken_ += sizes_[taken] = bytes;
        peak_ = std::max(peak_, taken_);
        return taken;
    }
    std::size_t peak_bytes() const override { return peak_; }
    void* allocate_shared(std::size_t bytes) override {
        choose_device();
        void* taken = nullptr;
        allocated(cudaMallocManaged(&taken, std::max<std::size_t>(bytes, 1)), bytes);
        return taken;
    }
    void release(void* memory) override {
        give_back([&] {
            cudaStreamSynchronize(stream());
            cudaFree(memory);
        });
        if (const auto found = sizes_.find(memory); found != sizes_.end()) {
            taken_ -= found->second;
            sizes_.erase(found);
        }
    }
    void to_device(void* device, const void* host, std::size_t bytes) override {
        choose_device();
        auto* to = static_cast<std::byte*>(device);
        const auto* from = static_cast<const std::byte*>(host);
        for (std::size_t at = 0; at < bytes; at += staging_bytes) {
            const std::size_t count = std::min(staging_bytes, bytes - at);
            Staging& s = staging_[next_];
            next_ ^= 1;
            if (s.memory == nullptr) s.make();
            check(cudaEventSynchronize(s.copied), "waiting for a staging buffer");
            fill(s.memory, from + at, count);
            check(cudaMemcpyAsync(to + at, s.memory, count, cudaMemcpyHostToDevice, stream()), "a copy to the device");
            check(cudaEventRecord(s.copied, stream()), "recording a copy");
        }
    }
    void to_host(void* host, const void* device, std::size_t bytes) override {
        check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream()), "a copy to the host");
        synchronise();
    }
    void within(void* to, const void* from, std::size_t bytes) override {
        check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream()), "a copy on the device");
    }
    void zero(void* device, std::size_t bytes) override { check(cudaMemsetAsync(device, 0, bytes, stream()), "cudaMemset"); }
    void synchronise() override { check(cudaStreamSynchronize(stream()), "waiting for the device"); }

    void pin(void* host, std::size_t bytes) override {
        choose_device();
        check(cudaHostRegister(host, bytes, cudaHostRegisterDefault), "pinning memory");
    }
    void unpin(void* host) override {
        give_back([&] {
            for (cudaStream_t copies : {up(), down()}) cudaStreamSynchronize(copies);
            cudaHostUnregister(host);
        });
    }
    void start_upload(void* device, const void* pinned, std::size_t bytes) override {
        check(cudaMemcpyAsync(device, pinned, bytes, cudaMemcpyHostToDevice, up()), "an upload");
    }
    void start_download(void* pinned, const void* device, std::size_t bytes) override {
        check(cudaMemcpyAsync(pinned, device, bytes, cudaMemcpyDeviceToHost, down()), "a download");
    }
    void compute_after_uploads() override { order(up(), stream()); }
    void downloads_after_compute() override { order(stream(), down()); }
    void uploads_after_compute() override { order(stream(), up()); }
    void uploads_after_downloads() override { order(down(), up()); }
    void finish_downloads() override { check(cudaStreamSynchronize(down()), "waiting for downloads"); }

  private:
    // Streams of copies, made at the first use.
    static cudaStream_t up() {
        choose_device();
        static const cudaStream_t copies = make_stream();
        return copies;
    }
    static cudaStream_t down() {
        choose_device();
        static const cudaStream_t copies = make_stream();
        return copies;
    }
    /// What is queued on `second` from here on waits for what is queued on `first`.
    static void order(cudaStream_t first, cudaStream_t second) {
        static const cudaEvent_t event = [] {
            cudaEvent_t made = nullptr;
            check(cudaEventCreateWithFlags(&made, cudaEventDisableTiming), "an event");
            return made;
        }();
        check(cudaEventRecord(event, first), "recording an event");
        check(cudaStreamWaitEvent(second, event, 0), "ordering copies");
    }
    struct Staging {
        std::byte* memory = nullptr;
        cudaEvent_t copied = nullptr;
        void make() {
            check(cudaMallocHost(&memory, staging_bytes), "pinned memory");
            check(cudaEventCreateWithFlags(&copied, cudaEventDisableTiming), "an event");
        }
    };
    static void allocated(cudaError_t status, std::size_t bytes) {
        ATELIER_CHECK_IO(status != cudaErrorMemoryAllocation, "the device cannot give {} bytes: use smaller micro-batches or another rank",
                         bytes);
        check(status, "an allocation");
    }
    std::map<void*, std::size_t> sizes_;
    std::size_t taken_ = 0, peak_ = 0;
    Staging staging_[2];
    int next_ = 0;
};

/// Memory that grows to the largest request and is kept to the end of the process.
struct Growing {
    void* taken = nullptr;
    std::size_t capacity = 0;
    void* at_least(std::size_t bytes) {
        if (bytes > capacity) {
            capacity = 0;
            if (taken != nullptr) memory().release(std::exchange(taken, nullptr));
            taken = memory().allocate(bytes);
            capacity = bytes;
        }
        return taken;
    }
};

}  // namespace

void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) [[likely]]
        return;
    ATELIER_FAIL(status == cudaErrorMemoryAllocation ? ErrorKind::io : ErrorKind::internal, "CUDA: {} failed: {} ({})", what,
                 cudaGetErrorString(status), cudaGetErrorName(status));
}

const char* open_device() {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    ATELIER_CHECK_USAGE(status == cudaSuccess && count > 0, "device = \"cuda\": no device can be used on this host: {}",
                        status == cudaSuccess ? "none is visible" : cudaGetErrorString(status));
    const char* local = nullptr;
    for (const char* name : {"OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "MPI_LOCALRANKID"})
        if (local == nullptr) local = std::getenv(name);
    const int device = device_of_rank(local == nullptr ? 0 : std::atoi(local), count);
    process_device = device;
    choose_device();
    static cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, device), "the device's properties");
    ATELIER_CHECK_USAGE(properties.major >= 8, "{} has compute capability {}.{}, at least 8.0 is needed", properties.name, properties.major,
                        properties.minor);
    return properties.name;
}

cudaStream_t stream() {
    choose_device();
    static const cudaStream_t instance = make_stream();
    return instance;
}

void* compute_stream() { return stream(); }

DeviceMemory& memory() {
    static Memory instance;
    return instance;
}

namespace {

Growing own_room, library_room;

}  // namespace

void* scratch(std::size_t bytes) { return own_room.at_least(bytes); }
void* library_scratch(std::size_t bytes) { return library_room.at_least(bytes); }
ScratchAddresses scratch_addresses() { return {own_room.taken, library_room.taken}; }

}  // namespace atelier::ops::cuda
