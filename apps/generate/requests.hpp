#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "options.hpp"

namespace atelier::generate {

/// One picture to make.
struct Request {
    std::string prompt, negative;
    bool has_negative = false;
    std::vector<std::filesystem::path> images;
    std::filesystem::path output;
    std::int64_t height = 0, width = 0;  ///< pixels; 0: from the references or output_resolution
};

/// The one request of the command line, or one for each line of the prompt file. Throws Error(input) naming file and line.
std::vector<Request> make_requests(const Options& options);

}  // namespace atelier::generate
