#include "comm/mpi/hosts.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

namespace zerosched::detail {
namespace {

TEST(Hosts, AreNumberedByTheirLowestRanks) {
  const Hosts hosts({7, 3, 7, 3, 5});
  EXPECT_EQ(hosts.count(), 3);
  EXPECT_EQ(hosts.ranks(), 5);
  EXPECT_EQ(hosts.members(0), (std::vector<int>{0, 2}));
  EXPECT_EQ(hosts.members(1), (std::vector<int>{1, 3}));
  EXPECT_EQ(hosts.members(2), (std::vector<int>{4}));
  EXPECT_EQ(hosts.host_of(3), 1);
  EXPECT_EQ(hosts.position_of(3), 1);
}

TEST(Hosts, EverySliceIsCarriedOncePerHost) {
  for (const auto& host_of_rank : std::vector<std::vector<int>>{{0}, {0, 0, 0}, {0, 1, 2}, {0, 0, 1, 1},
           {0, 1, 0, 1}, {0, 0, 0, 1}, {0, 1, 1, 1, 2, 2}, {0, 1, 0, 0, 0, 2, 2, 1}}) {
    const Hosts hosts(host_of_rank);
    std::multiset<std::pair<int, int>> carried;  // slice, host
    for (int rank = 0; rank < hosts.ranks(); ++rank) {
      EXPECT_EQ(hosts.carrier(hosts.host_of(rank), rank), rank) << "on its own host it is its own";
      for (const int owner : hosts.carried_by(rank)) {
        EXPECT_EQ(hosts.carrier(hosts.host_of(rank), owner), rank);
        carried.emplace(owner, hosts.host_of(rank));
      }
    }
    EXPECT_EQ(carried.size(), static_cast<size_t>(hosts.ranks() * hosts.count()));
    for (const auto& slice_on_host : carried) EXPECT_EQ(carried.count(slice_on_host), 1U);
  }
}

TEST(Hosts, RanksApartCarryAll) {
  const Hosts hosts = Hosts::apart(3);
  EXPECT_EQ(hosts.count(), 3);
  for (int rank = 0; rank < 3; ++rank) EXPECT_EQ(hosts.carried_by(rank), (std::vector<int>{0, 1, 2}));
}

}  // namespace
}  // namespace zerosched::detail
