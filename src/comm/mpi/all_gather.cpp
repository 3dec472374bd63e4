#include "comm/mpi/all_gather.h"

#include "comm/mpi/group.h"
#include "comm/mpi/message_gather.h"
#include "comm/mpi/shared_stages.h"

#include <utility>

namespace zerosched::detail {

AllGather::AllGather(std::shared_ptr<MpiGroup> group, const Header& header, std::vector<at::Tensor> tensors,
    std::unique_ptr<Staging> staging, int64_t stride)
    : PhasedOperation(std::move(group), header, std::move(tensors), std::move(staging)), stride_(stride) {}

void AllGather::start_data() {
  const Hosts& hosts = group().hosts();
  const int rank = group().rank();
  slice_bytes_ = static_cast<int64_t>(tensor(0).nbytes()) / group().size();
  if (slice_bytes_ == 0) return;
  const std::vector<int> carried = hosts.carried_by(rank);
  if (hosts.count() > 1) gather_from_hosts(carried);
  if (hosts.members(hosts.host_of(rank)).size() > 1) gather_on_host(carried);
}

void AllGather::gather_from_hosts(const std::vector<int>& carried) {
  const Hosts& hosts = group().hosts();
  const int rank = group().rank();
  const int own_host = hosts.host_of(rank);
  std::vector<GatherLane> sends, receives;
  // Each begins with the next host, so that not all send to the same one first.
  for (int distance = 1; distance < hosts.count(); ++distance) {
    sends.push_back({hosts.carrier((own_host + distance) % hosts.count(), rank), slices({rank})});
  }
  for (const int owner : carried) {
    if (owner != rank) receives.push_back({owner, slices({owner})});
  }
  then<MessageGather>(group(), slice_bytes_, std::move(sends), std::move(receives), header().sequence);
}

void AllGather::gather_on_host(const std::vector<int>& carried) {
  const Hosts& hosts = group().hosts();
  const int rank = group().rank();
  const auto& members = hosts.members(hosts.host_of(rank));
  const int64_t sequence = header().sequence;
  std::vector<SharedGather::Source> sources;
  std::vector<GatherLane> sends, receives;
  for (size_t distance = 1; distance < members.size(); ++distance) {
    const int member = members[(static_cast<size_t>(hosts.position_of(rank)) + distance) % members.size()];
    const std::vector<char*> held = slices(hosts.carried_by(member));
    sources.push_back({hosts.position_of(member), held});
    receives.push_back({member, held});
    sends.push_back({member, slices(carried)});
  }
  if (stride_ == 0) {
    then<MessageGather>(group(), slice_bytes_, std::move(sends), std::move(receives), sequence);
    return;
  }
  then<SharedGather>(group().local_ranks(), sequence, stride_, slice_bytes_, std::move(sources));
  then<SharedEnd>(group().local_ranks(), sequence);
}

std::vector<char*> AllGather::slices(const std::vector<int>& ranks) const {
  std::vector<char*> slices;
  for (const int rank : ranks)
    slices.push_back(static_cast<char*>(tensor(0).data_ptr()) + rank * slice_bytes_);
  return slices;
}

}  // namespace zerosched::detail
