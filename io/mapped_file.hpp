#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

namespace atelier::io {

/// A file mapped read-only for as long as the object lives; bytes are read when touched. A page that cannot be read ends the process as Error(io).
class MappedFile {
  public:
    /// Throws Error(input) that names the file if it is missing, Error(io) if it cannot be opened.
    explicit MappedFile(const std::filesystem::path& path);
    ~MappedFile();
    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&& other) noexcept;
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;
    std::span<const std::byte> bytes() const { return {data_, size_}; }
    const std::filesystem::path& path() const { return path_; }
    /// Whole pages within [data, data + bytes) leave this process's memory; touched again, they are read again.
    void release(const std::byte* data, std::size_t bytes) const;

  private:
    std::filesystem::path path_;
    const std::byte* data_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace atelier::io
