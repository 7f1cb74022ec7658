// NCCL's calls over MPI and the few of CUDA's that its communicator makes, on the emulator's device memory or the host's: everything is
// done when a call returns. As with a communicator that doesn't block, the call's status comes later: until it was asked for often enough
// nothing else may be called.
// ATELIER_EMULATOR_NCCL takes a rank away from the others: "absent" never comes to the start; "dies" is gone once the first collective is
// queued, of which there is word after a second; "hangs" is the same without a word. What is queued then never ends.
// ordered_sum is a plain loop here.
#include <cuda_runtime_api.h>
#include <mpi.h>
#include <nccl.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "comm/nccl/ordered_sum.hpp"
#include "emulator/locked_memory.hpp"
#include "emulator/stalled.hpp"

namespace {

using Clock = std::chrono::steady_clock;

std::vector<MPI_Request> under_way;
int asks_left = 0;  ///< questions until the last call is no longer in progress
bool is_finalized = false;
bool never_ends = false;  ///< what is queued
Clock::time_point lost_at;
constexpr int highest_priority = -5;
int own_stream;  ///< its address is the stream of collectives; the computation's is null

bool lost(std::string_view how) {
    const char* asked = std::getenv("ATELIER_EMULATOR_NCCL");
    return asked != nullptr && how == asked;
}

void require(bool kept, const char* rule) {
    if (kept) return;
    std::fprintf(stderr, "NCCL's stand-in: %s\n", rule);
    std::abort();
}

ncclResult_t begin() {
    require(asks_left == 0, "a call while another is in progress");
    asks_left = 3;
    return ncclInProgress;
}

/// True where the collective is queued and no more will come of it.
bool queue_for_ever() {
    if (!lost("dies") && !lost("hangs")) return false;
    if (!never_ends) lost_at = Clock::now();
    return never_ends = true;
}

ncclResult_t of(int status) { return status == MPI_SUCCESS ? begin() : ncclRemoteError; }

int queued = 0;      ///< collectives
int waited_for = 0;  ///< how many of them the event is behind that the computation waited for last

struct Event {
    bool never_comes = false;
    int behind = 0;  ///< collectives
};

}  // namespace

extern "C" {

/// For tests: collectives queued so far, and how many of them the computation waited for last.
int stand_in_queued() { return queued; }
int stand_in_waited_for() { return waited_for; }

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* highest) { return *least = 0, *highest = highest_priority, cudaSuccess; }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int priority) {
    require(priority == highest_priority, "a stream of collectives that isn't of the highest priority");
    return *stream = reinterpret_cast<cudaStream_t>(&own_stream), cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    const Event& waited = *reinterpret_cast<Event*>(event);
    if (stream == nullptr && waited.never_comes) emulator::stall();
    if (stream == nullptr) waited_for = waited.behind;
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return *event = reinterpret_cast<cudaEvent_t>(new Event), cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete reinterpret_cast<Event*>(event), cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    *reinterpret_cast<Event*>(event) = {stream != nullptr && never_ends, queued};
    return cudaSuccess;
}
cudaError_t cudaMalloc(void** memory, size_t bytes) { return *memory = std::malloc(bytes), cudaSuccess; }
cudaError_t cudaFree(void* memory) { return std::free(memory), cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "an error of the stand-ins"; }

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) { return *id = {}, ncclSuccess; }
ncclResult_t ncclCommInitRankConfig(ncclComm_t* communicator, int ranks, ncclUniqueId, int, ncclConfig_t* config) {
    int size = 0;
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    *communicator = reinterpret_cast<ncclComm_t>(&under_way);
    return size == ranks && config->blocking == 0 ? begin() : ncclInvalidArgument;
}
ncclResult_t ncclCommFinalize(ncclComm_t) { return is_finalized = true, begin(); }
ncclResult_t ncclCommDestroy(ncclComm_t) {
    require(is_finalized && asks_left == 0 && !never_ends, "destroyed before it was finalized");
    return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t) { return never_ends = false, ncclSuccess; }
ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* error) {
    const bool stays = lost("absent") || (is_finalized && never_ends);
    if (asks_left > 0 && !stays) --asks_left;
    *error = asks_left > 0 ? ncclInProgress : ncclSuccess;
    if (lost("dies") && never_ends && Clock::now() - lost_at > std::chrono::seconds(1)) *error = ncclRemoteError;
    return ncclSuccess;
}
const char* ncclGetErrorString(ncclResult_t error) { return error == ncclRemoteError ? "a rank is gone" : "an error of the stand-ins"; }
ncclResult_t ncclGroupStart() { return require(asks_left == 0, "a group while a call is in progress"), ncclSuccess; }
ncclResult_t ncclSend(const void* data, size_t count, ncclDataType_t, int peer, ncclComm_t, cudaStream_t) {
    if (queue_for_ever()) return ncclSuccess;
    const emulator::Access access;
    return MPI_Isend(data, static_cast<int>(count), MPI_FLOAT, peer, 0, MPI_COMM_WORLD, &under_way.emplace_back()) == MPI_SUCCESS ? ncclSuccess
                                                                                                                                   : ncclRemoteError;
}
ncclResult_t ncclRecv(void* data, size_t count, ncclDataType_t, int peer, ncclComm_t, cudaStream_t) {
    if (queue_for_ever()) return ncclSuccess;
    const emulator::Access access;
    return MPI_Irecv(data, static_cast<int>(count), MPI_FLOAT, peer, 0, MPI_COMM_WORLD, &under_way.emplace_back()) == MPI_SUCCESS ? ncclSuccess
                                                                                                                                   : ncclRemoteError;
}
ncclResult_t ncclGroupEnd() {
    ++queued;
    const emulator::Access access;
    const int status = MPI_Waitall(static_cast<int>(under_way.size()), under_way.data(), MPI_STATUSES_IGNORE);
    under_way.clear();
    return of(status);
}
ncclResult_t ncclAllGather(const void* mine, void* all, size_t count, ncclDataType_t, ncclComm_t, cudaStream_t) {
    ++queued;
    if (queue_for_ever()) return begin();
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    const emulator::Access access;
    const bool in_place = mine == static_cast<char*>(all) + static_cast<size_t>(rank) * count;
    return of(MPI_Allgather(in_place ? MPI_IN_PLACE : mine, static_cast<int>(count), MPI_BYTE, all, static_cast<int>(count), MPI_BYTE,
                            MPI_COMM_WORLD));
}

}  // extern "C"

namespace atelier::comm {

cudaError_t ordered_sum(int parts_count, std::int64_t share, const float* parts, float* out, cudaStream_t) {
    if (never_ends) return cudaSuccess;
    const emulator::Access access;
    for (std::int64_t i = 0; i < share; ++i) {
        float sum = parts[i];
        for (int r = 1; r < parts_count; ++r) sum += parts[r * share + i];
        out[i] = sum;
    }
    return cudaSuccess;
}

}  // namespace atelier::comm
