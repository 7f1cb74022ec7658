// Runs a target on files, or on all files of folders: the corpus as a regression test, without a fuzzer.
#include <cstdio>
#include <fstream>
#include <iterator>
#include <vector>

#include "fuzz/target.hpp"

namespace {

void run_file(const std::filesystem::path& path) {
    std::ifstream in(path, std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(in), {}};
    std::fprintf(stderr, "%s\n", path.c_str());  // the last line before a crash names the file
    atelier::fuzz::run_one({reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()});
}

}  // namespace

int main(int argc, char** argv) {
    atelier::fuzz::says_why = true;
    int files = 0;
    for (int i = 1; i < argc; ++i) {
        if (std::filesystem::is_directory(argv[i])) {
            for (const auto& entry : std::filesystem::directory_iterator(argv[i])) run_file(entry.path()), ++files;
        } else {
            run_file(argv[i]), ++files;
        }
    }
    std::printf("%d inputs\n", files);
    return files > 0 ? 0 : 2;
}
