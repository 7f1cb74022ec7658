#include "core/device_turn.hpp"

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "core/error.hpp"

namespace atelier {
namespace {

/// Numbers are drawn and served in turn.
struct Queue {
    std::mutex mutex;
    std::condition_variable served_next;
    std::uint64_t drawn = 0, served = 0;  ///< the number that is served has the device, where it was drawn
};
Queue& queue() {
    static Queue instance;
    return instance;
}

thread_local int depth = 0;
std::atomic<int> shared = 0;

}  // namespace

DeviceTurn::DeviceTurn(Device device) : counts_(device != Device::cpu) {
    if (!counts_ || depth++ > 0) return;
    Queue& q = queue();
    std::unique_lock lock(q.mutex);
    const std::uint64_t mine = q.drawn++;
    q.served_next.wait(lock, [&] { return q.served == mine; });
}

DeviceTurn::~DeviceTurn() {
    if (!counts_ || --depth > 0) return;
    Queue& q = queue();
    {
        const std::lock_guard lock(q.mutex);
        ++q.served;
    }
    q.served_next.notify_all();
}

bool DeviceTurn::is_mine() { return depth > 0; }

std::size_t DeviceTurn::waiting() {
    Queue& q = queue();
    const std::lock_guard lock(q.mutex);
    return q.drawn == q.served ? 0 : static_cast<std::size_t>(q.drawn - q.served - 1);
}

SharedDevice::SharedDevice() { ++shared; }
SharedDevice::~SharedDevice() { --shared; }

void check_device_turn() {
    ATELIER_CHECK(DeviceTurn::is_mine() || shared == 0, "the device is shared, and it is not this thread's turn to use it");
}

}  // namespace atelier
