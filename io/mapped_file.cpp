#include "io/mapped_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "core/error.hpp"

namespace atelier::io {

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    const int reason = errno;
    ATELIER_CHECK_KIND(reason == ENOENT || reason == ENOTDIR ? ErrorKind::input : ErrorKind::io, file >= 0, "cannot open {}: {}",
                       path.string(), std::strerror(reason));
    struct stat info {};
    const bool known = fstat(file, &info) == 0 && S_ISREG(info.st_mode);
    void* address = nullptr;
    if (known && info.st_size > 0) {
        address = mmap(nullptr, static_cast<std::size_t>(info.st_size), PROT_READ, MAP_PRIVATE, file, 0);
    }
    const int error = errno;
    close(file);
    ATELIER_CHECK_INPUT(known, "{} is not a regular file", path.string());
    ATELIER_CHECK_IO(address != MAP_FAILED, "cannot map {}: {}", path.string(), std::strerror(error));
    data_ = static_cast<const std::byte*>(address);
    size_ = static_cast<std::size_t>(info.st_size);
}

MappedFile::~MappedFile() {
    if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
}

void MappedFile::release(const std::byte* data, std::size_t bytes) const {
    const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto begin = (reinterpret_cast<std::uintptr_t>(data) + page - 1) / page * page;
    const auto end = (reinterpret_cast<std::uintptr_t>(data) + bytes) / page * page;
    // A hint: where the system refuses it, the pages stay.
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace atelier::io
