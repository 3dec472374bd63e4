#include "comm/mpi/make_group.h"

#include "base/random_id.h"
#include "comm/mpi/check.h"
#include "comm/mpi/progress.h"

#include <utility>

namespace zerosched::detail {

namespace {

int rank_in(MPI_Comm comm) {
  int rank = 0;
  ZEROSCHED_MPI_CALL(MPI_Comm_rank, comm, &rank);
  return rank;
}

int size_of(MPI_Comm comm) {
  int size = 1;
  ZEROSCHED_MPI_CALL(MPI_Comm_size, comm, &size);
  return size;
}

// A duplicate without the parent's hints, some of which (no wildcard receives, say) would break ours.
MPI_Comm duplicate_of(MPI_Comm parent) {
  MPI_Comm comm = MPI_COMM_NULL;
  ZEROSCHED_MPI_CALL(MPI_Comm_dup_with_info, parent, MPI_INFO_NULL, &comm);
  ZEROSCHED_MPI_CALL(MPI_Comm_set_errhandler, comm, MPI_ERRORS_RETURN);
  return comm;
}

SharingTalk talk_over(MPI_Comm comm) {
  SharingTalk talk;
  talk.gather = [comm](const SharedFile& own) {
    std::vector<SharedFile> all(static_cast<size_t>(size_of(comm)));
    constexpr int kBytes = static_cast<int>(sizeof(SharedFile));
    ZEROSCHED_MPI_CALL(MPI_Allgather, &own, kBytes, MPI_BYTE, all.data(), kBytes, MPI_BYTE, comm);
    return all;
  };
  talk.lowest = [comm](int own) {
    int lowest = 0;
    ZEROSCHED_MPI_CALL(MPI_Allreduce, &own, &lowest, 1, MPI_INT, MPI_MIN, comm);
    return lowest;
  };
  return talk;
}

std::shared_ptr<LocalRanks> make_local_ranks(
    int rank, const MpiOptions& options, const Hosts& hosts, const SharingTalk& talk) {
  if (!options.shares_memory || hosts.count() == hosts.ranks()) return nullptr;
  const auto count = static_cast<int>(hosts.members(hosts.host_of(rank)).size());
  auto board = share_memory(hosts, rank, LocalRanks::board_bytes(count), talk);
  if (board == nullptr) return nullptr;
  return std::make_shared<LocalRanks>(std::move(board), hosts.position_of(rank), count);
}

}  // namespace

Hosts find_hosts(MPI_Comm comm, const MpiOptions& options) {
  if (!options.host_of_rank.empty()) return Hosts(options.host_of_rank);
  MPI_Comm host = MPI_COMM_NULL;
  ZEROSCHED_MPI_CALL(MPI_Comm_split_type, comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host);
  int first = rank_in(comm);
  ZEROSCHED_MPI_CALL(MPI_Bcast, &first, 1, MPI_INT, 0, host);
  ZEROSCHED_MPI_CALL(MPI_Comm_free, &host);
  std::vector<int> host_of_rank(static_cast<size_t>(size_of(comm)));
  ZEROSCHED_MPI_CALL(MPI_Allgather, &first, 1, MPI_INT, host_of_rank.data(), 1, MPI_INT, comm);
  return Hosts(host_of_rank);
}

std::shared_ptr<MpiGroup> make_group(
    MPI_Comm parent, const MpiOptions& options, const Hosts& hosts, std::shared_ptr<Failure> failure) {
  const MPI_Comm comm = duplicate_of(parent);
  uint64_t id = random_id();
  ZEROSCHED_MPI_CALL(MPI_Bcast, &id, 1, MPI_UINT64_T, 0, comm);
  return make_group_on(comm, id, options, hosts, std::move(failure), talk_over(comm));
}

std::shared_ptr<MpiGroup> make_group_on(MPI_Comm comm, uint64_t id, const MpiOptions& options,
    const Hosts& hosts, std::shared_ptr<Failure> failure, const SharingTalk& talk) {
  auto local_ranks = make_local_ranks(rank_in(comm), options, hosts, talk);
  auto group =
      std::make_shared<MpiGroup>(comm, id, options, hosts, std::move(local_ranks), std::move(failure));
  Progress::instance().add(group);
  return group;
}

}  // namespace zerosched::detail
