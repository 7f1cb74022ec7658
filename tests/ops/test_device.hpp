#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <string>

#include "core/device.hpp"
#include "ops/backend.hpp"

// ATELIER_TEST_DEVICE=cuda runs a test program's operations on the backend: the emulated one, or a real device (there with
// CUDA_LAUNCH_BLOCKING=1, since tests read results as soon as a call returns).
namespace atelier::testing {

/// The device that the tests run on, its backend loaded, products in fp32.
inline Device test_device() {
    const char* word = std::getenv("ATELIER_TEST_DEVICE");
    if (word == nullptr || std::string(word) != "cuda") return Device::cpu;
    ops::load_backend().set_product_precision(ops::ProductPrecision::fp32);
    return Device::cuda;
}

/// All operations of a test program's main thread run on that device.
class DeviceEnvironment : public ::testing::Environment {
  public:
    void SetUp() override { scope_ = std::make_unique<DeviceScope>(test_device()); }
    void TearDown() override { scope_.reset(); }

  private:
    std::unique_ptr<DeviceScope> scope_;
};

/// Memory that both sides may touch where a device is tested.
template <typename T>
struct SharedAllocator {
    using value_type = T;
    SharedAllocator() = default;
    template <typename U>
    SharedAllocator(const SharedAllocator<U>&) {}
    T* allocate(std::size_t n) {
        if (current_device() == Device::cpu) return std::allocator<T>().allocate(n);
        return static_cast<T*>(device_memory().allocate_shared(n * sizeof(T)));
    }
    void deallocate(T* p, std::size_t n) {
        if (current_device() == Device::cpu)
            std::allocator<T>().deallocate(p, n);
        else
            device_memory().release(p);
    }
    bool operator==(const SharedAllocator&) const { return true; }
};

}  // namespace atelier::testing
