// A configuration: what is read and printed is read again to the same.
#include "config/config.hpp"

#include <optional>

#include "fuzz/target.hpp"
#include "stage/schema.hpp"

namespace atelier::fuzz {

void run_one(std::span<const std::uint8_t> bytes) {
    const auto path = as_file("config.toml", bytes);
    std::optional<config::Config> resolved;
    read_or_refuse([&] { resolved = config::Config::resolve(path, {}, stage::schema()); });
    if (!resolved) return;
    const auto again = config::Config::resolve(as_file("again.toml", resolved->to_toml()), {}, stage::schema());
    if (again.to_toml() != resolved->to_toml()) std::abort();
}

}  // namespace atelier::fuzz
