#pragma once

#include <cstddef>
#include <vector>

namespace zerosched::detail {

/// Which ranks of a group share a host, and who carries what between hosts.
///
/// Hosts are numbered by their lowest ranks. Of each host one rank exchanges a given slice with other hosts: the one
/// with the position of the slice's own rank on its host, counted round where a host has fewer ranks. So all ranks of a
/// host take part, and each byte crosses the network once per pair of hosts.
class Hosts {
 public:
  /// Ranks with equal entries share a host.
  explicit Hosts(const std::vector<int>& host_of_rank);

  /// As if each rank had a host to itself.
  static Hosts apart(int ranks);

  int ranks() const { return static_cast<int>(host_.size()); }
  int count() const { return static_cast<int>(members_.size()); }
  int host_of(int rank) const { return host_[static_cast<size_t>(rank)]; }
  /// Its ranks, ascending.
  const std::vector<int>& members(int host) const { return members_[static_cast<size_t>(host)]; }
  /// Position among the members of its host.
  int position_of(int rank) const { return position_[static_cast<size_t>(rank)]; }
  /// The member of `host` that exchanges the slice of `rank` with the host of that; `rank` itself on its own host.
  int carrier(int host, int rank) const;
  /// The ranks whose slices `rank` carries on its host, ascending: its own and some of other hosts.
  std::vector<int> carried_by(int rank) const;

 private:
  std::vector<int> host_, position_;
  std::vector<std::vector<int>> members_;
};

}  // namespace zerosched::detail
