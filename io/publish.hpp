#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

namespace atelier::io {

/// Size and xxh3-128 (32 hexadecimal digits) of a file's bytes.
struct FileDigest {
    std::uint64_t size = 0;
    std::string hash;
    bool operator==(const FileDigest&) const = default;
};
/// Throws Error(input) if the file is missing, Error(io) if it cannot be opened.
FileDigest digest_file(const std::filesystem::path& path);
std::string digest_bytes(const void* data, std::size_t size);

/// Waits until a file's bytes are on disk. Throws Error(io).
void flush_file(const std::filesystem::path& path);

/// Asks the kernel to read a file ahead, as much as it likes.
void read_ahead(const std::filesystem::path& path);

/// Publishes a file: `write` gets a temporary name in the same directory; then flush to disk, rename, flush of the
/// directory. A reader sees the old file or the new one, never half of one. Whatever `write` throws leaves the old file
/// and no temporary. Returns the file's digest, taken while the disk was at work. Throws Error(io).
FileDigest publish_file(const std::filesystem::path& path, const std::function<void(const std::filesystem::path&)>& write);
/// The same with the file's text.
void publish_text(const std::filesystem::path& path, const std::string& text);

/// Publishes a directory that `write` fills under a temporary name: every file in it is flushed, then it is renamed. It changes places with
/// an older one of the name (RENAME_EXCHANGE; else two renames): whatever goes wrong, the older or the new one stays, whole.
void publish_directory(const std::filesystem::path& path, const std::function<void(const std::filesystem::path&)>& write);

/// Names of files and directories that are not published yet begin with this.
inline constexpr const char* temporary_prefix = ".tmp-";
/// Removes what killed writers left in a directory: everything, or what was to become `name`; a directory that was renamed away and has
/// no successor gets its name back. Call only while holding the right to write it. Returns how many were removed. Throws Error(io).
int remove_temporaries(const std::filesystem::path& directory, const std::string& name = {});

/// Creates a directory and its parents. Throws Error(io) naming it.
void make_directories(const std::filesystem::path& path);

/// Exclusive right to write a stage's directory, for as long as the object lives. The kernel gives it back when the
/// process ends, however it ends.
class DirectoryLock {
  public:
    /// Throws Error(busy) naming the owner if another process holds it.
    explicit DirectoryLock(const std::filesystem::path& directory);
    ~DirectoryLock();
    DirectoryLock(const DirectoryLock&) = delete;
    DirectoryLock& operator=(const DirectoryLock&) = delete;

  private:
    int file_ = -1;
};

/// Waits for its turn at a file of this name, which stays. The kernel gives the turn back when the process ends. Throws Error(io).
class Turn {
  public:
    explicit Turn(const std::filesystem::path& path);
    ~Turn();
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

  private:
    int file_;
};

}  // namespace atelier::io
