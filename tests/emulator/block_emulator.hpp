#pragma once

// CUDA's execution model for one block at a time on the host: the threads of a block are fibers, barriers and warp shuffles
// are where they switch. A tool for tests, not a backend. Kernel sources see CUDA's names.
//
// It reports, as errors, a barrier or a shuffle that not every thread (lane) reaches. It fills shared memory with NaN before
// each block, and runs the threads between two barriers in an order chosen by `schedule`: a kernel with a race gives other
// numbers under another schedule.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <type_traits>
#include <vector>

#include "emulator/locked_memory.hpp"

#define __global__
#define __device__ inline
#define __host__
#define __forceinline__
#define __launch_bounds__(...)
#define ATELIER_SHARED(type, name, count) static ::emulator::Shared<type, (count)> name
#define ATELIER_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(::emulator::dynamic_shared())

namespace emulator {

struct Index {
    unsigned x = 0, y = 0, z = 0;
};

enum class Schedule { ascending, descending, shuffled };
/// The order in which threads run between barriers, from the next launch on.
void set_schedule(Schedule schedule);
/// Kernel launches so far.
std::int64_t launches();

/// Runs `body` once for each thread of each block, blocks one after another. Throws atelier::Error on a barrier or shuffle that
/// some thread never reaches.
void run(std::int64_t blocks_x, std::int64_t blocks_y, std::int64_t blocks_z, int threads, std::size_t shared_bytes,
         const std::function<void()>& body);

/// Runs `work` now, or keeps it for the recording that is on. Launches and what the libraries' stand-ins do go through it.
void queue(std::function<void()> work);
/// From construction on, until it is taken or gone, what is queued is kept instead of being run.
class Recording {
  public:
    Recording();
    ~Recording();
    Recording(const Recording&) = delete;
    std::vector<std::function<void()>> take();
};
bool is_recording();

void barrier();
/// `bytes` of another lane's value (xor_mask from this lane's index).
void exchange(const void* mine, void* theirs, std::size_t bytes, unsigned mask, int xor_mask);
void* dynamic_shared();

namespace detail {
struct SharedBlock {
    SharedBlock(void* data, std::size_t bytes);
};
}  // namespace detail

/// A block's shared array; poisoned before each block.
template <typename T, std::size_t count>
class Shared {
  public:
    operator T*() { return values_; }

  private:
    T values_[count];
    detail::SharedBlock registered_{values_, sizeof(values_)};
};

}  // namespace emulator

extern emulator::Index threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads() { emulator::barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
    int nothing = 0, other = 0;
    emulator::exchange(&nothing, &other, sizeof(int), mask, 0);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int xor_mask) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
    T other;
    emulator::exchange(&value, &other, sizeof(T), mask, xor_mask);
    return other;
}
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline unsigned __float_as_uint(float x) {
    unsigned u;
    std::memcpy(&u, &x, 4);
    return u;
}
inline float __uint_as_float(unsigned u) {
    float x;
    std::memcpy(&x, &u, 4);
    return x;
}
