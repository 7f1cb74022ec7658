// libFuzzer's entry.
#include "fuzz/target.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    atelier::fuzz::run_one({data, size});
    return 0;
}
