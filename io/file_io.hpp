#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace atelier::io {

/// A file being written, from its beginning or on from its end. Every byte is written or an Error(io) names the file and the system's reason; one that is not
/// closed (an exception on the way) is a file that nobody has been told of.
class OutputFile {
  public:
    enum class From : std::uint8_t { beginning, end };
    /// Creates the file where there is none; empties it, unless it is written on from its end.
    explicit OutputFile(const std::filesystem::path& path, From from = From::beginning);
    ~OutputFile();
    OutputFile(const OutputFile&) = delete;
    OutputFile& operator=(const OutputFile&) = delete;
    void write(const void* data, std::size_t bytes);
    /// Network file systems say only here that a write has failed.
    void close();

  private:
    std::filesystem::path path_;
    int file_ = -1;
};

/// A whole file written.
void write_text(const std::filesystem::path& path, const std::string& text);
/// A text written behind what the file holds.
void append_text(const std::filesystem::path& path, std::string_view text);

/// A whole file. Throws Error(input) when it is missing, Error(io) when it cannot be read to its end: half a file is never taken for one.
std::string read_text(const std::filesystem::path& path);

}  // namespace atelier::io
