#pragma once

#include <cstddef>

#include "core/tensor.hpp"

namespace atelier {

/// An accelerator's memory. All calls keep to one order: a copy sees what was queued before it; a copy to the host is done when it
/// returns. Errors are Error(io) where there is no memory left, Error(internal) else.
class DeviceMemory {
  public:
    virtual ~DeviceMemory() = default;
    /// Zero at first.
    virtual void* allocate(std::size_t bytes) = 0;
    virtual void release(void* memory) = 0;  ///< waits for what was queued; does not throw: a destructor's
    /// Bytes that were taken at once at most, with scratch memory and workspaces; what libraries take for themselves is not seen.
    virtual std::size_t peak_bytes() const = 0;
    /// Memory that both sides may touch (tests; never in a step).
    virtual void* allocate_shared(std::size_t bytes) = 0;
    virtual void to_device(void* device, const void* host, std::size_t bytes) = 0;
    virtual void to_host(void* host, const void* device, std::size_t bytes) = 0;
    virtual void within(void* to, const void* from, std::size_t bytes) = 0;
    virtual void zero(void* device, std::size_t bytes) = 0;
    /// Waits for everything that was queued.
    virtual void synchronise() = 0;

    // Copies beside the computation, from and to pinned host memory. They keep to the order of their own kind; the calls below order
    // the kinds.
    virtual void pin(void* host, std::size_t bytes) = 0;
    virtual void unpin(void* host) = 0;  ///< waits for the copies; does not throw
    virtual void start_upload(void* device, const void* pinned, std::size_t bytes) = 0;
    virtual void start_download(void* pinned, const void* device, std::size_t bytes) = 0;
    /// What is computed from here on sees the uploads so far.
    virtual void compute_after_uploads() = 0;
    /// Downloads from here on see what was computed so far.
    virtual void downloads_after_compute() = 0;
    /// Uploads from here on may overwrite what the computation so far read.
    virtual void uploads_after_compute() = 0;
    /// Uploads from here on may overwrite what downloads so far read.
    virtual void uploads_after_downloads() = 0;
    /// Waits for the downloads so far.
    virtual void finish_downloads() = 0;
};

/// The loaded backend's memory. Throws Error(usage) where none is loaded.
DeviceMemory& device_memory();
/// Null: none. By ops/backend.hpp.
void set_device_memory(DeviceMemory* memory);

namespace detail {
inline thread_local constinit Device current_device = Device::cpu;
}
/// Where the calling thread's operations run.
inline Device current_device() { return detail::current_device; }

/// The calling thread's operations run on `device` for the scope's life.
class DeviceScope {
  public:
    explicit DeviceScope(Device device) : before_(detail::current_device) { detail::current_device = device; }
    ~DeviceScope() { detail::current_device = before_; }
    DeviceScope(const DeviceScope&) = delete;
    DeviceScope& operator=(const DeviceScope&) = delete;

  private:
    Device before_;
};

/// to = from, of one dtype and count, on whatever devices they are.
void transfer(const Tensor& from, const Tensor& to);
void clear(const Tensor& tensor);

/// What a computation on `device` takes or gives may lie elsewhere: the tensor itself where it is there, else the head of `room`.
Tensor there(Device device, const Tensor& tensor, const Tensor& room);
/// An input, brought there.
Tensor bring(Device device, const Tensor& tensor, const Tensor& room);

}  // namespace atelier
