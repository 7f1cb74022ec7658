#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <thread>

#include "comm/communicator.hpp"
#include "io/publish.hpp"
#include "io/trajectory.hpp"

namespace atelier::stage {

/// Publishes a stage's shards in the order in which they are put, on a thread of its own, while the stage goes on. Where HDF5 is not safe
/// for threads it publishes them at once.
class ShardWriter {
  public:
    /// Shards that are held at most: one being written, one that waits.
    static constexpr std::size_t most_held = 2;
    ShardWriter();
    /// What has been put is published before; what goes wrong then goes unsaid (finish() says it).
    ~ShardWriter();

    /// Waits while a shard is in the queue already. Throws what writing an earlier one threw; nothing is written after that.
    void put(std::filesystem::path path, io::TrajectoryShard shard);
    /// Until everything is published. Throws likewise.
    void finish();

    /// Of the files that are published, by name. After finish().
    const std::map<std::string, io::FileDigest>& digests() const { return digests_; }
    /// Of writing, and of it what put() and finish() waited for.
    double seconds() const { return seconds_; }
    double waited_seconds() const { return waited_; }

  private:
    struct Entry {
        std::filesystem::path path;
        io::TrajectoryShard shard;
    };
    void write(const Entry& entry);
    void work();
    /// Until there is no more than `most` in the queue or in writing, or something went wrong.
    void wait(std::unique_lock<std::mutex>& lock, std::size_t most);

    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<Entry> queue_;
    bool is_writing_ = false, ends_ = false;
    std::exception_ptr failure_;
    std::map<std::string, io::FileDigest> digests_;
    double seconds_ = 0, waited_ = 0;
    std::thread thread_;
};

/// The digests of all ranks' files. Collective.
std::map<std::string, io::FileDigest> gather_digests(comm::Communicator& world, const std::map<std::string, io::FileDigest>& mine);

}  // namespace atelier::stage
