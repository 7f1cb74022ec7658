// NCCL's calls over MPI and the few of CUDA's that its communicator makes, on the emulator's device memory or the host's: everything is
// done when a call returns.
// ordered_sum is a plain loop here.
#include <cuda_runtime_api.h>
#include <mpi.h>
#include <nccl.h>

#include <cstdlib>
#include <vector>

#include "comm/nccl/ordered_sum.hpp"
#include "emulator/locked_memory.hpp"

namespace {

std::vector<MPI_Request> under_way;

ncclResult_t of(int status) { return status == MPI_SUCCESS ? ncclSuccess : ncclRemoteError; }

}  // namespace

extern "C" {

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return *stream = nullptr, cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return *event = nullptr, cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaMalloc(void** memory, size_t bytes) { return *memory = std::malloc(bytes), cudaSuccess; }
cudaError_t cudaFree(void* memory) { return std::free(memory), cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "an error of the stand-ins"; }

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) { return *id = {}, ncclSuccess; }
ncclResult_t ncclCommInitRankConfig(ncclComm_t* communicator, int ranks, ncclUniqueId, int, ncclConfig_t* config) {
    int size = 0;
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    *communicator = reinterpret_cast<ncclComm_t>(&under_way);
    return size == ranks && config->blocking == 0 ? ncclSuccess : ncclInvalidArgument;
}
ncclResult_t ncclCommFinalize(ncclComm_t) { return ncclSuccess; }
ncclResult_t ncclCommDestroy(ncclComm_t) { return ncclSuccess; }
ncclResult_t ncclCommAbort(ncclComm_t) { return ncclSuccess; }
ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* error) { return *error = ncclSuccess, ncclSuccess; }
const char* ncclGetErrorString(ncclResult_t) { return "an error of the stand-ins"; }
ncclResult_t ncclGroupStart() { return ncclSuccess; }
ncclResult_t ncclSend(const void* data, size_t count, ncclDataType_t, int peer, ncclComm_t, cudaStream_t) {
    const emulator::Access access;
    return of(MPI_Isend(data, static_cast<int>(count), MPI_FLOAT, peer, 0, MPI_COMM_WORLD, &under_way.emplace_back()));
}
ncclResult_t ncclRecv(void* data, size_t count, ncclDataType_t, int peer, ncclComm_t, cudaStream_t) {
    const emulator::Access access;
    return of(MPI_Irecv(data, static_cast<int>(count), MPI_FLOAT, peer, 0, MPI_COMM_WORLD, &under_way.emplace_back()));
}
ncclResult_t ncclGroupEnd() {
    const emulator::Access access;
    const int status = MPI_Waitall(static_cast<int>(under_way.size()), under_way.data(), MPI_STATUSES_IGNORE);
    under_way.clear();
    return of(status);
}
ncclResult_t ncclAllGather(const void* mine, void* all, size_t count, ncclDataType_t, ncclComm_t, cudaStream_t) {
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    const emulator::Access access;
    const bool in_place = mine == static_cast<char*>(all) + static_cast<size_t>(rank) * count;
    return of(MPI_Allgather(in_place ? MPI_IN_PLACE : mine, static_cast<int>(count), MPI_BYTE, all, static_cast<int>(count), MPI_BYTE,
                            MPI_COMM_WORLD));
}

}  // extern "C"

namespace atelier::comm {

void ordered_sum(int parts_count, std::int64_t share, const float* parts, float* out, cudaStream_t) {
    const emulator::Access access;
    for (std::int64_t i = 0; i < share; ++i) {
        float sum = parts[i];
        for (int r = 1; r < parts_count; ++r) sum += parts[r * share + i];
        out[i] = sum;
    }
}

}  // namespace atelier::comm
