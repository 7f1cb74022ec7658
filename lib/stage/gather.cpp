#include "stage/gather.hpp"

#include <cstdint>
#include <span>

namespace atelier::stage {

std::vector<nlohmann::json> gather_json(comm::Communicator& world, const nlohmann::json& mine) {
    const auto bytes = nlohmann::json::to_cbor(mine);
    std::vector<nlohmann::json> all;
    for (const auto& part : world.gather(std::as_bytes(std::span(bytes)))) {
        const auto* data = reinterpret_cast<const std::uint8_t*>(part.data());
        all.push_back(nlohmann::json::from_cbor(data, data + part.size()));
    }
    return all;
}

}  // namespace atelier::stage
