#pragma once

#include <filesystem>

namespace atelier {

/// The function `entry` of a library that is loaded when it is first asked for and kept: the file that the environment variable
/// `named_by` names, else ../lib/`file` beside the program. Throws Error(usage), beginning with `wanted_by`, that says what is
/// missing.
void* load_entry(const char* wanted_by, const char* named_by, const char* file, const char* entry);

}  // namespace atelier
