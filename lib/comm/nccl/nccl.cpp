#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "comm/device_communicator.hpp"
#include "comm/nccl/ordered_sum.hpp"
#include "core/error.hpp"

namespace atelier::comm {
namespace {

// Numbers of all ranks' parts that are added at a time.
constexpr auto room_numbers = static_cast<std::int64_t>(device_sum_bytes / sizeof(float));
constexpr auto poll = std::chrono::microseconds(50);

void check_cuda(cudaError_t status, const char* what) {
    ATELIER_CHECK(status == cudaSuccess, "CUDA: {} failed: {}", what, cudaGetErrorString(status));
}

class Nccl final : public DeviceCommunicator {
  public:
    Nccl(Communicator& world, cudaStream_t compute)
        : compute_(compute), rank_(world.rank()), size_(world.size()), block_share_(room_numbers / world.size()) {
        ncclUniqueId id{};
        if (world.is_root()) check(ncclGetUniqueId(&id), "ncclGetUniqueId");
        world.broadcast(std::as_writable_bytes(std::span(&id, 1)), 0);
        check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream");
        for (cudaEvent_t* event : {&computed_, &communicated_})
            check_cuda(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "an event");
        check_cuda(cudaMalloc(reinterpret_cast<void**>(&room_), bytes()), "room for sums");
        ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
        config.blocking = 0;  // calls return at once, so that a rank that never comes can be seen
        check(ncclCommInitRankConfig(&communicator_, size_, id, rank_, &config), "ncclCommInitRankConfig");
    }
    ~Nccl() override {
        if (communicator_ != nullptr) {
            cudaStreamSynchronize(stream_);
            ncclCommFinalize(communicator_);
            ncclCommDestroy(communicator_);
        }
        cudaFree(room_);
        for (cudaEvent_t event : {computed_, communicated_}) cudaEventDestroy(event);
        cudaStreamDestroy(stream_);
    }
    Nccl(const Nccl&) = delete;

    void sum(float* values, std::int64_t n) override {
        std::int64_t at = 0;
        while (n - at >= size_) {
            const std::int64_t share = std::min(block_share_, (n - at) / size_);
            float* mine = values + at + rank_ * share;
            exchange(values + at, share, mine, share);
            gather(mine, values + at, static_cast<std::size_t>(share) * sizeof(float));
            at += share * size_;
        }
        if (at == n) return;
        // The last few, fewer than ranks, are added by each rank.
        gather(values + at, room_, static_cast<std::size_t>(n - at) * sizeof(float));
        ordered_sum(size_, n - at, room_, values + at, stream_);
    }
    void reduce_scatter(const float* values, float* mine, std::int64_t share) override {
        for (std::int64_t at = 0; at < share; at += block_share_)
            exchange(values + at, share, mine + at, std::min(block_share_, share - at));
    }
    void all_gather(const void* mine, void* all, std::size_t count) override { gather(mine, all, count); }
    void after_compute() override {
        check_cuda(cudaEventRecord(computed_, compute_), "recording an event");
        check_cuda(cudaStreamWaitEvent(stream_, computed_, 0), "waiting for the computation");
    }
    void before_compute() override {
        check_cuda(cudaEventRecord(communicated_, stream_), "recording an event");
        check_cuda(cudaStreamWaitEvent(compute_, communicated_, 0), "waiting for collectives");
    }
    void wait() override {
        check_cuda(cudaEventRecord(communicated_, stream_), "recording an event");
        for (;;) {
            const cudaError_t state = cudaEventQuery(communicated_);
            if (state == cudaSuccess) return;
            if (state != cudaErrorNotReady) fail(cudaGetErrorString(state), "a collective");
            settle(ncclSuccess, "a collective");
            std::this_thread::sleep_for(poll);
        }
    }
    std::size_t bytes() const override { return static_cast<std::size_t>(block_share_ * size_) * sizeof(float); }

  private:
    /// Part r of the numbers, `stride` apart, goes to rank r; what came from ranks 0, 1, … is added into mine [count].
    void exchange(const float* values, std::int64_t stride, float* mine, std::int64_t count) {
        grouped(ncclGroupStart(), "ncclGroupStart");
        for (int r = 0; r < size_; ++r) {
            grouped(ncclSend(values + r * stride, static_cast<std::size_t>(count), ncclFloat32, r, communicator_, stream_), "ncclSend");
            grouped(ncclRecv(room_ + r * count, static_cast<std::size_t>(count), ncclFloat32, r, communicator_, stream_), "ncclRecv");
        }
        check(ncclGroupEnd(), "ncclGroupEnd");
        ordered_sum(size_, count, room_, mine, stream_);
    }

    void gather(const void* mine, void* all, std::size_t count) {
        check(ncclAllGather(mine, all, count, ncclInt8, communicator_, stream_), "ncclAllGather");
    }

    /// Calls of a group are under way only at its end.
    void grouped(ncclResult_t status, const char* what) {
        if (status != ncclSuccess && status != ncclInProgress) fail(ncclGetErrorString(status), what);
    }
    void check(ncclResult_t status, const char* what) {
        if (status != ncclSuccess) settle(status, what);
    }

    /// Waits while the library is still about it; throws where it, or another rank, failed.
    void settle(ncclResult_t status, const char* what) {
        if (communicator_ != nullptr && (status == ncclSuccess || status == ncclInProgress)) {
            do {
                if (ncclCommGetAsyncError(communicator_, &status) != ncclSuccess) break;
                if (status == ncclInProgress) std::this_thread::sleep_for(poll);
            } while (status == ncclInProgress);
        }
        if (status != ncclSuccess) fail(ncclGetErrorString(status), what);
    }

    [[noreturn]] void fail(const char* why, const char* what) {
        if (communicator_ != nullptr) ncclCommAbort(communicator_);
        communicator_ = nullptr;
        ATELIER_FAIL(ErrorKind::rank, "NCCL: {} failed: {} (a rank or a link between devices failed)", what, why);
    }

    cudaStream_t compute_, stream_ = nullptr;
    cudaEvent_t computed_ = nullptr, communicated_ = nullptr;
    ncclComm_t communicator_ = nullptr;
    int rank_, size_;
    std::int64_t block_share_;
    float* room_ = nullptr;
};

}  // namespace
}  // namespace atelier::comm

extern "C" __attribute__((visibility("default"))) atelier::comm::DeviceCommunicator* atelier_device_communicator(
    const atelier::Process& caller, atelier::comm::Communicator& world, void* compute_stream) {
    atelier::process() = caller;
    return new atelier::comm::Nccl(world, static_cast<cudaStream_t>(compute_stream));
}
