#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <exception>
#include <limits>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <utility>

#include "comm/device_communicator.hpp"
#include "comm/nccl/ordered_sum.hpp"
#include "comm/patience.hpp"
#include "core/error.hpp"
#include "core/process.hpp"

namespace atelier::comm {
namespace {

using Clock = std::chrono::steady_clock;

// Numbers of all ranks' parts that are added at a time.
constexpr auto room_numbers = static_cast<std::int64_t>(device_sum_bytes / sizeof(float));
// Ranks' shares are multiples of so many numbers (256 bytes) where there are as many, so that parts of a vector, and of the room, begin where NCCL
// can move 16 bytes at a time, whatever the number of ranks.
constexpr std::int64_t share_unit = 64;
constexpr auto poll = std::chrono::microseconds(50);           // by a call that NCCL is still about
constexpr auto watch_period = std::chrono::milliseconds(100);  // between calls

std::int64_t whole_units(std::int64_t share) { return share < share_unit ? share : share - share % share_unit; }

void check_cuda(cudaError_t status, const char* what) {
    ATELIER_CHECK(status == cudaSuccess, "CUDA: {} failed: {}", what, cudaGetErrorString(status));
}

class Nccl final : public DeviceCommunicator {
  public:
    Nccl(Communicator& world, cudaStream_t compute)
        : world_(world), compute_(compute), rank_(world.rank()), size_(world.size()), block_share_(whole_units(room_numbers / world.size())) {
        ncclUniqueId id{};
        if (world.is_root()) settle(ncclGetUniqueId(&id), "ncclGetUniqueId");
        world.broadcast(std::as_writable_bytes(std::span(&id, 1)), 0);
        // Of the highest priority: a collective takes few multiprocessors, and those who wait for it wait for the slowest rank's, while kernels of
        // the computation that were queued before it would fill all of them.
        int least = 0, highest = 0;
        check_cuda(cudaDeviceGetStreamPriorityRange(&least, &highest), "the priorities of streams");
        check_cuda(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, highest), "a stream");
        for (cudaEvent_t* event : {&computed_, &summed_, &gathered_})
            check_cuda(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "an event");
        check_cuda(cudaMalloc(reinterpret_cast<void**>(&room_), bytes()), "room for sums");
        ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
        config.blocking = 0;  // calls return at once, so that a rank that never comes can be seen
        settle(ncclCommInitRankConfig(&communicator_, size_, id, rank_, &config), "ncclCommInitRankConfig", end_of_patience());
        watcher_ = std::jthread([this](const std::stop_token& stop) { watch(stop); });
    }
    ~Nccl() override {
        watcher_.request_stop();
        watcher_.join();
        // A rank that fails leaves everything as it is: main is about to end all ranks with its error's code, and what they saw of an abort
        // here would come before it, with another.
        if (std::uncaught_exceptions() > 0) return;
        if (communicator_ != nullptr) close();
        cudaFree(room_);
        for (cudaEvent_t event : {computed_, summed_, gathered_}) cudaEventDestroy(event);
        cudaStreamDestroy(stream_);
    }
    Nccl(const Nccl&) = delete;

    void sum(float* values, std::int64_t n) override {
        std::int64_t at = 0;
        while (n - at >= size_) {
            const std::int64_t share = std::min(block_share_, whole_units((n - at) / size_));
            float* mine = values + at + rank_ * share;
            exchange(values + at, share, mine, share);
            gather(mine, values + at, static_cast<std::size_t>(share) * sizeof(float));
            at += share * size_;
        }
        if (at < n) {  // the last few, fewer than ranks, are added by each rank
            gather(values + at, room_, static_cast<std::size_t>(n - at) * sizeof(float));
            check_cuda(ordered_sum(size_, n - at, room_, values + at, stream_), "a sum");
        }
        record(summed_);
    }
    void reduce_scatter(const float* values, float* mine, std::int64_t share) override {
        for (std::int64_t at = 0; at < share; at += block_share_)
            exchange(values + at, share, mine + at, std::min(block_share_, share - at));
        record(summed_);
    }
    void all_gather(const void* mine, void* all, std::size_t count) override {
        gather(mine, all, count);
        record(gathered_);
    }
    void after_compute() override {
        check_cuda(cudaEventRecord(computed_, compute_), "recording an event");
        check_cuda(cudaStreamWaitEvent(stream_, computed_, 0), "waiting for the computation");
    }
    void sum_before_compute() override { check_cuda(cudaStreamWaitEvent(compute_, summed_, 0), "waiting for a sum"); }
    void gather_before_compute() override { check_cuda(cudaStreamWaitEvent(compute_, gathered_, 0), "waiting for a gather"); }
    std::size_t bytes() const override { return static_cast<std::size_t>(block_share_ * size_) * sizeof(float); }

  private:
    void record(cudaEvent_t event) { check_cuda(cudaEventRecord(event, stream_), "recording an event"); }

    /// Part r of the numbers, `stride` apart, goes to rank r; what came from ranks 0, 1, … is added into mine [count].
    void exchange(const float* values, std::int64_t stride, float* mine, std::int64_t count) {
        issue("an exchange", [&] {
            ncclResult_t status = ncclGroupStart();
            const auto add = [&](ncclResult_t next) {  // what is under way is so from the group's end on
                if (status == ncclSuccess || status == ncclInProgress) status = next;
            };
            for (int r = 0; r < size_; ++r) {
                add(ncclSend(values + r * stride, static_cast<std::size_t>(count), ncclFloat32, r, communicator_, stream_));
                add(ncclRecv(room_ + r * count, static_cast<std::size_t>(count), ncclFloat32, r, communicator_, stream_));
            }
            add(ncclGroupEnd());
            return status;
        });
        check_cuda(ordered_sum(size_, count, room_, mine, stream_), "a sum");
    }

    void gather(const void* mine, void* all, std::size_t count) {
        issue("ncclAllGather", [&] { return ncclAllGather(mine, all, count, ncclInt8, communicator_, stream_); });
    }

    /// Calls that queue collectives. They return at once; what NCCL is still about, connections at the first use, is waited for however
    /// late the other ranks are.
    template <typename Calls>
    void issue(const char* what, Calls calls) {
        ncclResult_t status = ncclSuccess;
        {
            const std::scoped_lock lock(mutex_);
            status = calls();
        }
        settle(status, what);
    }

    /// Waits while NCCL is still about it; throws where it, or another rank, failed, or it isn't over at `end`.
    void settle(ncclResult_t status, const char* what, Clock::time_point end = Clock::time_point::max()) {
        status = outcome(status, end);
        if (status == ncclInProgress)
            fail(fmt::format("rank {} of {} waited {} s for the others; ATELIER_LAUNCHER_PATIENCE (seconds) sets how long", rank_, size_,
                             launcher_patience().count()),
                 what);
        if (status != ncclSuccess) fail(ncclGetErrorString(status), what);
    }
    /// A call's status once it is no longer in progress, or that it still is at `end`.
    ncclResult_t outcome(ncclResult_t status, Clock::time_point end) {
        while (status == ncclInProgress && Clock::now() < end) {
            std::this_thread::sleep_for(poll);
            const std::scoped_lock lock(mutex_);
            status = state();
        }
        return status;
    }
    static Clock::time_point end_of_patience() { return Clock::now() + launcher_patience(); }
    /// With the mutex.
    ncclResult_t state() {
        ncclResult_t status = ncclSuccess;
        const ncclResult_t asked = ncclCommGetAsyncError(communicator_, &status);
        return asked != ncclSuccess ? asked : status;
    }

    [[noreturn]] void fail(const std::string& why, const char* what) {
        {
            const std::scoped_lock lock(mutex_);
            if (communicator_ != nullptr) ncclCommAbort(std::exchange(communicator_, nullptr));
        }
        throw_failure(why, what);
    }
    [[noreturn]] static void throw_failure(const std::string& why, const char* what) {
        ATELIER_FAIL(ErrorKind::rank, "NCCL: {} failed: {} (a rank or a link between devices failed)", what, why);
    }

    /// The watcher's work: what main does with an error, where main waits for a device that waits for a rank that is gone.
    void watch(const std::stop_token& stop) {
        for (; !stop.stop_requested(); std::this_thread::sleep_for(watch_period)) {
            const std::scoped_lock lock(mutex_);  // kept while the process ends: main has nothing to add
            if (communicator_ == nullptr) return;
            const ncclResult_t status = state();
            if (status == ncclSuccess || status == ncclInProgress) continue;
            try {
                throw_failure(ncclGetErrorString(status), "a collective");
            } catch (const Error&) {
                world_.abort(report_failure(program_invocation_short_name));
            }
        }
    }

    /// Flushes what is queued and waits until every rank has done so, which they do when their work is over.
    void close() {
        const ncclResult_t status = outcome(ncclCommFinalize(communicator_), end_of_patience());
        status == ncclSuccess ? ncclCommDestroy(communicator_) : ncclCommAbort(communicator_);
    }
    Communicator& world_;
    cudaStream_t compute_, stream_ = nullptr;
    cudaEvent_t computed_ = nullptr, summed_ = nullptr, gathered_ = nullptr;  ///< the last of each
    std::mutex mutex_;                   ///< NCCL takes calls on a communicator from one thread at a time
    ncclComm_t communicator_ = nullptr;  ///< null: aborted
    int rank_, size_;
    std::int64_t block_share_;
    float* room_ = nullptr;
    std::jthread watcher_;
};

}  // namespace
}  // namespace atelier::comm

extern "C" __attribute__((visibility("default"))) atelier::comm::DeviceCommunicator* atelier_device_communicator(
    const atelier::Process& caller, atelier::comm::Communicator& world, void* compute_stream) {
    atelier::process() = caller;
    return new atelier::comm::Nccl(world, static_cast<cudaStream_t>(compute_stream));
}
