#pragma once

#include <filesystem>
#include <string>
#include <string_view>

// Names that somebody else wrote: one that leads nowhere is the fault of whoever wrote it, a file system that does not answer is not.
namespace atelier::io {

/// Whether a regular file stands there, links followed; false where no file can have the name. Throws Error(io) where the file system
/// cannot say.
bool is_file(const std::filesystem::path& path);

/// Whether a relative name stays within the directory that it is relative to (its parts are not looked at on disk).
bool stays_inside(const std::filesystem::path& name);

/// A file name for any text: what is no letter, digit, '.', '_' or '-' of ASCII percent-encoded, dots too where they stand alone. Another for
/// another text; of more than 200 bytes the first, and a digest of all.
std::string file_name_of(std::string_view text);

}  // namespace atelier::io
