#include "comm/mpi/hosts.h"

#include <map>
#include <numeric>

namespace zerosched::detail {

Hosts::Hosts(const std::vector<int>& host_of_rank) {
  std::map<int, int> number;
  for (size_t rank = 0; rank < host_of_rank.size(); ++rank) {
    const auto [entry, is_new] = number.emplace(host_of_rank[rank], count());
    if (is_new) members_.emplace_back();
    auto& members = members_[static_cast<size_t>(entry->second)];
    host_.push_back(entry->second);
    position_.push_back(static_cast<int>(members.size()));
    members.push_back(static_cast<int>(rank));
  }
}

Hosts Hosts::apart(int ranks) {
  std::vector<int> host_of_rank(static_cast<size_t>(ranks));
  std::iota(host_of_rank.begin(), host_of_rank.end(), 0);
  return Hosts(host_of_rank);
}

int Hosts::carrier(int host, int rank) const {
  const auto& candidates = members(host);
  return candidates[static_cast<size_t>(position_of(rank)) % candidates.size()];
}

std::vector<int> Hosts::carried_by(int rank) const {
  std::vector<int> carried;
  for (int owner = 0; owner < ranks(); ++owner) {
    if (carrier(host_of(rank), owner) == rank) carried.push_back(owner);
  }
  return carried;
}

}  // namespace zerosched::detail
