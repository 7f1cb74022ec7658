#include "stage/shard_writer.hpp"

#include <fmt/format.h>

#include <chrono>
#include <span>
#include <sstream>

#include "stage/background.hpp"

namespace atelier::stage {
namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

}  // namespace

ShardWriter::ShardWriter() {
    if (writes_in_background()) thread_ = std::thread([this] { work(); });
}

ShardWriter::~ShardWriter() {
    {
        const std::lock_guard lock(mutex_);
        ends_ = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) thread_.join();
}

void ShardWriter::write(const Entry& entry) {
    const auto begin = Clock::now();
    const io::FileDigest digest = io::publish_file(
        entry.path, [&](const std::filesystem::path& temporary) { io::write_trajectory(temporary, entry.shard); });
    const std::lock_guard lock(mutex_);
    digests_[entry.path.filename().string()] = digest;
    seconds_ += since(begin);
}

void ShardWriter::work() {
    std::unique_lock lock(mutex_);
    while (true) {
        changed_.wait(lock, [&] { return !queue_.empty() || ends_; });
        if (queue_.empty()) return;
        const Entry entry = std::move(queue_.front());
        queue_.pop_front();
        if (failure_) continue;
        is_writing_ = true;
        lock.unlock();
        std::exception_ptr failure;
        try {
            write(entry);
        } catch (...) {
            failure = std::current_exception();
        }
        lock.lock();
        is_writing_ = false;
        failure_ = failure;
        changed_.notify_all();
    }
}

void ShardWriter::wait(std::unique_lock<std::mutex>& lock, std::size_t most) {
    const auto begin = Clock::now();
    changed_.wait(lock, [&] { return failure_ || queue_.size() + (is_writing_ ? 1 : 0) <= most; });
    waited_ += since(begin);
    if (failure_) std::rethrow_exception(failure_);
}

void ShardWriter::put(std::filesystem::path path, io::TrajectoryShard shard) {
    if (!thread_.joinable()) {
        const auto begin = Clock::now();
        write({std::move(path), std::move(shard)});
        waited_ += since(begin);
        return;
    }
    std::unique_lock lock(mutex_);
    wait(lock, most_held - 1);
    queue_.push_back({std::move(path), std::move(shard)});
    lock.unlock();
    changed_.notify_all();
}

void ShardWriter::finish() {
    std::unique_lock lock(mutex_);
    wait(lock, 0);
}

std::map<std::string, io::FileDigest> gather_digests(comm::Communicator& world, const std::map<std::string, io::FileDigest>& mine) {
    std::string lines;
    for (const auto& [name, digest] : mine) lines += fmt::format("{} {} {}\n", digest.size, digest.hash, name);
    std::map<std::string, io::FileDigest> all;
    for (const auto& theirs : world.gather(std::as_bytes(std::span(lines)))) {
        std::istringstream in(std::string(reinterpret_cast<const char*>(theirs.data()), theirs.size()));
        io::FileDigest digest;
        std::string name;
        while (in >> digest.size >> digest.hash && std::getline(in >> std::ws, name)) all[name] = digest;
    }
    return all;
}

}  // namespace atelier::stage
