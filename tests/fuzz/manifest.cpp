// A manifest, and the check of the outputs that it names.
#include "io/manifest.hpp"

#include "fuzz/target.hpp"

namespace atelier::fuzz {

void run_one(std::span<const std::uint8_t> bytes) {
    as_file(io::manifest_name, bytes);
    read_or_refuse([&] {
        (void)io::read_manifest(scratch());
        (void)io::is_complete(scratch());
    });
}

}  // namespace atelier::fuzz
