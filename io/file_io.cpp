#include "io/file_io.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/open_failure.hpp"

namespace atelier::io {

OutputFile::OutputFile(const std::filesystem::path& path, From from)
    : path_(path), file_(open(path.c_str(), O_WRONLY | O_CREAT | (from == From::end ? O_APPEND : O_TRUNC) | O_CLOEXEC, 0666)) {
    ATELIER_CHECK_IO(file_ >= 0, "cannot create {}: {}", path.string(), std::strerror(errno));
}

OutputFile::~OutputFile() {
    if (file_ >= 0) ::close(file_);
}

void OutputFile::write(const void* data, std::size_t bytes) {
    for (const char* at = static_cast<const char*>(data); bytes > 0;) {
        const ssize_t done = ::write(file_, at, bytes);
        if (done < 0 && errno == EINTR) continue;
        ATELIER_CHECK_IO(done > 0, "cannot write {}: {}", path_.string(), done < 0 ? std::strerror(errno) : "no byte was taken");
        at += done;
        bytes -= static_cast<std::size_t>(done);
    }
}

void OutputFile::close() {
    const int file = file_;
    file_ = -1;  // closed whatever the system says
    ATELIER_CHECK_IO(::close(file) == 0, "cannot write {}: {} when it was closed", path_.string(), std::strerror(errno));
}

void write_text(const std::filesystem::path& path, const std::string& text) {
    OutputFile out(path);
    out.write(text.data(), text.size());
    out.close();
}

void append_text(const std::filesystem::path& path, std::string_view text) {
    OutputFile out(path, OutputFile::From::end);
    out.write(text.data(), text.size());
    out.close();
}

std::string read_text(const std::filesystem::path& path) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    const int reason = errno;
    ATELIER_CHECK_INPUT(file >= 0 || (reason != ENOENT && reason != ENOTDIR), "{} is missing", path.string());
    ATELIER_CHECK_KIND(kind_of_failed_open(reason), file >= 0, "cannot open {}: {}", path.string(), std::strerror(reason));
    std::string text;
    struct stat info {};
    if (fstat(file, &info) == 0 && info.st_size > 0) text.reserve(static_cast<std::size_t>(info.st_size));
    char piece[1 << 16];
    ssize_t count = 0;
    while ((count = read(file, piece, sizeof(piece))) > 0 || (count < 0 && errno == EINTR))
        if (count > 0) text.append(piece, static_cast<std::size_t>(count));
    const int error = errno;
    ::close(file);
    ATELIER_CHECK_IO(count == 0, "cannot read {}: {}", path.string(), std::strerror(error));
    return text;
}

}  // namespace atelier::io
