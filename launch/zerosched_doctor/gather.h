#pragma once

#include <zerosched/communicator.h>

#include <nlohmann/json.hpp>

#include <vector>

namespace doctor {

/// Every rank's value, in the order of ranks. Collective.
std::vector<nlohmann::json> gather(zerosched::Communicator& communicator, const nlohmann::json& mine);

}  // namespace doctor
