#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "comm/communicator.hpp"

namespace atelier::stage {

/// Every rank's value on every rank, in rank order. Collective.
std::vector<nlohmann::json> gather_json(comm::Communicator& world, const nlohmann::json& mine);

}  // namespace atelier::stage
