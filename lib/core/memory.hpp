#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/bytes.hpp"

namespace atelier {

/// Bytes of this process in physical memory, now and at most so far (Linux' VmRSS and VmHWM).
std::size_t resident_bytes();
std::size_t peak_resident_bytes();

/// Makes every larger block of memory go back to the system as soon as it is freed, so that a
/// process holds what it uses and no more. Once, at the start of a program.
void return_freed_memory();
/// Gives back the pages that are free now, holes between what is kept too. After a reader has filled memory with small things of its own.
void return_holes();

/// What a process is going to hold at once. Some is held to the end, some during one phase: the plan
/// is what is held to the end and the largest phase.
class MemoryPlan {
  public:
    /// Notes what the process holds already: program, libraries, transport.
    MemoryPlan();
    void hold(const std::string& what, const Bytes& bytes);
    void hold_during(const std::string& phase, const std::string& what, const Bytes& bytes);
    /// Held on the device to the end by or for libraries: an estimate.
    void hold_of_libraries(const std::string& what, std::size_t device_bytes);
    /// Of a process that computes on a device: once, where any of its models is there.
    void hold_device_libraries();
    Bytes total() const;
    /// Of the device, what is planned exactly: all but what libraries hold.
    std::size_t without_libraries() const { return total().device - libraries_; }
    using Entries = std::vector<std::pair<std::string, Bytes>>;  ///< what, how much
    const Entries& held() const { return held_; }
    const std::vector<std::pair<std::string, Entries>>& phases() const { return phases_; }
    /// "143.2 MiB: program 31.0, weights 18.2, …; while updating: gradients 12.8, …", and the same of the device's memory behind it where
    /// there is any.
    std::string str() const;

  private:
    static Bytes sum(const Entries& entries);
    Entries held_;
    std::size_t libraries_ = 0;  ///< bytes of the device among held_
    std::vector<std::pair<std::string, Entries>> phases_;
};

}  // namespace atelier
