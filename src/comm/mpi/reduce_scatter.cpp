#include "comm/mpi/reduce_scatter.h"

#include "comm/mpi/group.h"
#include "comm/mpi/message_reduce.h"
#include "comm/mpi/shared_stages.h"

#include <cstring>
#include <utility>

namespace zerosched::detail {

ReduceScatter::ReduceScatter(std::shared_ptr<MpiGroup> group, const Header& header,
    std::vector<at::Tensor> tensors, std::unique_ptr<Staging> staging, int64_t stride)
    : PhasedOperation(std::move(group), header, std::move(tensors), std::move(staging)), stride_(stride) {}

void ReduceScatter::start_data() {
  const Hosts& hosts = group().hosts();
  const int rank = group().rank();
  const at::Tensor& out = tensor(1);
  auto* result = static_cast<char*>(out.data_ptr());
  slice_bytes_ = static_cast<int64_t>(out.nbytes());
  if (group().size() == 1 || slice_bytes_ == 0) {
    if (slice(0) != result) std::memcpy(result, slice(0), out.nbytes());
    return;
  }
  const std::vector<int> carried = hosts.carried_by(rank);
  if (hosts.count() == 1) {
    sum_on_host(carried, {result}, true);
    return;
  }
  std::vector<char*> sums;
  const bool alone = hosts.members(hosts.host_of(rank)).size() == 1;
  if (alone) {
    for (const int owner : carried) sums.push_back(slice(owner));
  } else {
    const int64_t bytes = out.numel() * partial_bytes(out.scalar_type());
    partials_ = group().scratch().take(bytes * static_cast<int64_t>(carried.size()));
    for (size_t i = 0; i < carried.size(); ++i)
      sums.push_back(partials_.get() + static_cast<int64_t>(i) * bytes);
    sum_on_host(carried, sums, false);
  }
  sum_over_hosts(carried, sums, !alone);
}

void ReduceScatter::sum_on_host(const std::vector<int>& carried, const std::vector<char*>& sums, bool last) {
  const auto dtype = tensor(0).scalar_type();
  const int64_t numel = tensor(1).numel();
  const int64_t sequence = header().sequence;
  const auto slices_of = [this](const std::vector<int>& owners) {
    std::vector<const char*> slices;
    for (const int owner : owners) slices.push_back(slice(owner));
    return slices;
  };
  if (stride_ != 0) {
    then<SharedReduce>(
        group().local_ranks(), sequence, stride_, dtype, numel, slices_of(carried), sums, last);
    then<SharedEnd>(group().local_ranks(), sequence);
    return;
  }
  const Hosts& hosts = group().hosts();
  const int rank = group().rank();
  ReducePlan plan{dtype, numel, {}, {}, sums, last};
  for (const int member : hosts.members(hosts.host_of(rank))) {
    if (member == rank) {
      plan.sources.push_back({-1, slices_of(carried), false});
    } else {
      plan.sources.push_back({member, {}, false});
      plan.sends.push_back({member, slices_of(hosts.carried_by(member)), false});
    }
  }
  then<MessageReduce>(group(), std::move(plan), sequence);
}

void ReduceScatter::sum_over_hosts(
    const std::vector<int>& carried, const std::vector<char*>& sums, bool partial) {
  const Hosts& hosts = group().hosts();
  const int rank = group().rank();
  ReducePlan plan{
      tensor(0).scalar_type(), tensor(1).numel(), {}, {}, {static_cast<char*>(tensor(1).data_ptr())}, true};
  const char* own = nullptr;
  for (size_t i = 0; i < carried.size(); ++i) {
    if (carried[i] == rank) {
      own = sums[i];
    } else {
      plan.sends.push_back({carried[i], {sums[i]}, partial});
    }
  }
  for (int host = 0; host < hosts.count(); ++host) {
    if (host == hosts.host_of(rank)) {
      plan.sources.push_back({-1, {own}, partial});
    } else {
      plan.sources.push_back({hosts.carrier(host, rank), {}, hosts.members(host).size() > 1});
    }
  }
  then<MessageReduce>(group(), std::move(plan), header().sequence);
}

char* ReduceScatter::slice(int rank) const {
  return static_cast<char*>(tensor(0).data_ptr()) + rank * slice_bytes_;
}

}  // namespace zerosched::detail
