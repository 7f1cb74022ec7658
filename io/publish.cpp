#include "io/publish.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <cstring>
#include <future>
#include <memory>
#include <vector>

#include "core/open_failure.hpp"
#include "core/process.hpp"
#include "io/file_io.hpp"

namespace atelier::io {
namespace {

namespace fs = std::filesystem;

constexpr const char* lock_name = ".lock";

std::string hex(XXH128_hash_t hash) { return fmt::format("{:016x}{:016x}", hash.high64, hash.low64); }

void flush(const fs::path& path, int flags) {
    const int file = open(path.c_str(), flags | O_CLOEXEC);
    ATELIER_CHECK_IO(file >= 0, "cannot open {} to flush it: {}", path.string(), std::strerror(errno));
    const bool flushed = fsync(file) == 0;
    const int error = errno;
    close(file);
    ATELIER_CHECK_IO(flushed, "cannot flush {}: {}", path.string(), std::strerror(error));
}

fs::path parent_of(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : fs::path("."); }

fs::path temporary_for(const fs::path& path) {
    return parent_of(path) / fmt::format("{}{}-{}-{}", temporary_prefix, path.filename().string(), process().host, getpid());
}

void rename_to(const fs::path& from, const fs::path& to) {
    ATELIER_CHECK_IO(std::rename(from.c_str(), to.c_str()) == 0, "cannot rename {} to {}: {}", from.string(), to.string(),
                     std::strerror(errno));
}

// One name for every writer: whoever comes next finds it.
const std::string displaced_prefix = std::string(temporary_prefix) + "displaced-";

/// Puts a directory in the place of another; returns where the other is now.
fs::path replace_directory(const fs::path& fresh, const fs::path& path) {
    if (renameat2(AT_FDCWD, fresh.c_str(), AT_FDCWD, path.c_str(), RENAME_EXCHANGE) == 0) return fresh;
    ATELIER_CHECK_IO(errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP, "cannot exchange {} and {}: {}", fresh.string(),
                     path.string(), std::strerror(errno));
    fs::path displaced = parent_of(path) / (displaced_prefix + path.filename().string());
    rename_to(path, displaced);
    try {
        rename_to(fresh, path);
    } catch (const Error&) {
        rename_to(displaced, path);
        throw;
    }
    return displaced;
}

}  // namespace

std::string digest_bytes(const void* data, std::size_t size) { return hex(XXH3_128bits(data, size)); }

FileDigest digest_file(const fs::path& path) {
    // Read piece by piece: pages of a mapping would count as this process's memory.
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    const int reason = errno;
    ATELIER_CHECK_KIND(kind_of_failed_open(reason), file >= 0, "cannot open {}: {}", path.string(), std::strerror(reason));
    const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(), XXH3_freeState);
    XXH3_128bits_reset(state.get());
    std::vector<char> piece(1 << 20);
    std::uint64_t size = 0;
    ssize_t count = 0;
    while ((count = read(file, piece.data(), piece.size())) > 0 || (count < 0 && errno == EINTR)) {
        if (count < 0) continue;
        XXH3_128bits_update(state.get(), piece.data(), static_cast<std::size_t>(count));
        size += static_cast<std::uint64_t>(count);
    }
    const int error = errno;
    close(file);
    ATELIER_CHECK_IO(count == 0, "cannot read {}: {}", path.string(), std::strerror(error));
    return {size, hex(XXH3_128bits_digest(state.get()))};
}

void flush_file(const fs::path& path) { flush(path, O_RDONLY); }

void read_ahead(const fs::path& path) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) return;  // whoever opens it says what is wrong
    posix_fadvise(file, 0, 0, POSIX_FADV_WILLNEED);
    close(file);
}

FileDigest publish_file(const fs::path& path, const std::function<void(const fs::path&)>& write) {
    const fs::path temporary = temporary_for(path);
    FileDigest digest;
    try {
        write(temporary);
        // The bytes are in memory still: they are read beside the disk's work.
        std::future<FileDigest> taken = std::async(std::launch::async, [&] { return digest_file(temporary); });
        flush(temporary, O_RDONLY);
        digest = taken.get();
        rename_to(temporary, path);
    } catch (...) {
        std::error_code ignored;
        fs::remove(temporary, ignored);
        throw;
    }
    flush(parent_of(path), O_RDONLY | O_DIRECTORY);
    return digest;
}

void publish_text(const fs::path& path, const std::string& text) {
    publish_file(path, [&](const fs::path& temporary) { write_text(temporary, text); });
}

void publish_directory(const fs::path& path, const std::function<void(const fs::path&)>& write) {
    const fs::path temporary = temporary_for(path);
    fs::path old;
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
    try {
        make_directories(temporary);
        write(temporary);
        for (const auto& entry : fs::recursive_directory_iterator(temporary))
            flush(entry.path(), entry.is_directory() ? O_RDONLY | O_DIRECTORY : O_RDONLY);
        flush(temporary, O_RDONLY | O_DIRECTORY);
        if (fs::exists(path)) old = replace_directory(temporary, path);
        else rename_to(temporary, path);
    } catch (...) {
        fs::remove_all(temporary, ignored);
        throw;
    }
    flush(parent_of(path), O_RDONLY | O_DIRECTORY);
    if (!old.empty()) fs::remove_all(old, ignored);
}

int remove_temporaries(const fs::path& directory, const std::string& name) {
    const std::string prefix = temporary_prefix + (name.empty() ? std::string() : name + "-");
    int removed = 0;
    std::error_code error;
    std::vector<fs::path> stale;
    for (const auto& entry : fs::directory_iterator(directory)) {
        const std::string found = entry.path().filename().string();
        if (found.starts_with(prefix) || (!name.empty() && found == displaced_prefix + name)) stale.push_back(entry.path());
    }
    for (const fs::path& path : stale) {
        const std::string found = path.filename().string();
        if (found.starts_with(displaced_prefix)) {
            const fs::path former = directory / found.substr(displaced_prefix.size());
            if (!fs::exists(former)) {
                rename_to(path, former);
                flush(directory, O_RDONLY | O_DIRECTORY);
                continue;
            }
        }
        fs::remove_all(path, error);
        ATELIER_CHECK_IO(!error, "cannot remove {}: {}", path.string(), error.message());
        ++removed;
    }
    return removed;
}

void make_directories(const fs::path& path) {
    std::error_code error;
    fs::create_directories(path, error);
    ATELIER_CHECK_IO(!error && fs::is_directory(path), "cannot create the directory {}: {}", path.string(), error.message());
}

DirectoryLock::DirectoryLock(const fs::path& directory) {
    make_directories(directory);
    const fs::path path = directory / lock_name;
    file_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    ATELIER_CHECK_IO(file_ >= 0, "cannot open {}: {}", path.string(), std::strerror(errno));
    if (flock(file_, LOCK_EX | LOCK_NB) != 0) {
        const int error = errno;
        char owner[256] = {};
        const auto read_bytes = pread(file_, owner, sizeof(owner) - 1, 0);
        close(file_);
        ATELIER_CHECK_IO(error == EWOULDBLOCK, "cannot lock {}: {}", path.string(), std::strerror(error));
        ATELIER_FAIL(ErrorKind::busy, "{} is being written by {}", directory.string(),
                     read_bytes > 0 ? std::string(owner, static_cast<std::size_t>(read_bytes)) : std::string("another process"));
    }
    const char* job = std::getenv("SLURM_JOB_ID");
    const std::string owner = fmt::format("process {} on {}{}", getpid(), process().host,
                                          job == nullptr ? std::string() : fmt::format(" (Slurm job {})", job));
    ATELIER_CHECK_IO(ftruncate(file_, 0) == 0 && pwrite(file_, owner.data(), owner.size(), 0) == static_cast<ssize_t>(owner.size()),
                     "cannot write {}: {}", path.string(), std::strerror(errno));
}

DirectoryLock::~DirectoryLock() {
    if (file_ >= 0) close(file_);
}

Turn::Turn(const fs::path& path)
    : file_(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {
    ATELIER_CHECK_IO(file_ >= 0 && flock(file_, LOCK_EX) == 0, "cannot lock {}: {}", path.string(), std::strerror(errno));
}

Turn::~Turn() { close(file_); }

}  // namespace atelier::io
