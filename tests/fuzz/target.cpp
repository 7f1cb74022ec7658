#include "fuzz/target.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <typeinfo>

#include "core/error.hpp"

namespace atelier::fuzz {
namespace {

namespace fs = std::filesystem;

struct Scratch {
    fs::path path = (fs::is_directory("/dev/shm") ? fs::path("/dev/shm") : fs::temp_directory_path()) / fmt::format("atelier-fuzz-{}", getpid());
    Scratch() { fs::create_directories(path); }
    ~Scratch() {
        std::error_code ignored;
        fs::remove_all(path, ignored);
    }
};

}  // namespace

bool says_why = false;

void read_or_refuse(const std::function<void()>& read) {
    try {
        read();
    } catch (const Error& e) {
        if (e.kind() == ErrorKind::input || e.kind() == ErrorKind::usage || e.kind() == ErrorKind::reward) {
            if (says_why) std::fprintf(stderr, "    %s\n", e.message().c_str());
            return;
        }
        std::fprintf(stderr, "not the input's fault, says the reader: %s\n", e.what());
        std::abort();
    } catch (const std::exception& e) {
        std::fprintf(stderr, "an exception that is no Error: %s: %s\n", typeid(e).name(), e.what());
        std::abort();
    }
}

const fs::path& scratch() {
    static const Scratch directory;
    return directory.path;
}

fs::path as_file(const std::string& name, std::string_view text) {
    const fs::path path = scratch() / name;
    std::ofstream(path, std::ios::binary).write(text.data(), static_cast<std::streamsize>(text.size()));
    return path;
}

fs::path as_file(const std::string& name, std::span<const std::uint8_t> bytes) {
    return as_file(name, std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

std::string as_text(std::span<const std::uint8_t> bytes) { return {bytes.begin(), bytes.end()}; }

}  // namespace atelier::fuzz
