#include "comm/mpi/all_gather.h"

#include "comm/mpi/check.h"
#include "comm/mpi/group.h"
#include "comm/mpi/tags.h"

namespace zerosched::detail {

void AllGather::start_data() {
  const int ranks = group().size();
  const int rank = group().rank();
  const auto slice_bytes = static_cast<int64_t>(tensor(0).nbytes()) / ranks;
  if (slice_bytes == 0) return;
  slice_.emplace(slice_bytes, group().options().max_count);
  auto* data = static_cast<char*>(tensor(0).data_ptr());
  const int tag = all_gather_tag(header().sequence);
  requests_.assign(2 * static_cast<size_t>(ranks - 1), MPI_REQUEST_NULL);
  auto* request = requests_.data();
  for (int distance = 1; distance < ranks; ++distance) {
    const int peer = (rank + ranks - distance) % ranks;
    ZEROSCHED_MPI_CALL(MPI_Irecv, data + peer * slice_bytes, slice_->count(), slice_->type(), peer, tag,
        group().comm(), request++);
  }
  for (int distance = 1; distance < ranks; ++distance) {
    ZEROSCHED_MPI_CALL(MPI_Isend, data + rank * slice_bytes, slice_->count(), slice_->type(),
        (rank + distance) % ranks, tag, group().comm(), request++);
  }
}

bool AllGather::poll_data() {
  int done = 0;
  ZEROSCHED_MPI_CALL(
      MPI_Testall, static_cast<int>(requests_.size()), requests_.data(), &done, MPI_STATUSES_IGNORE);
  if (done) set_data_done();
  return done != 0;
}

}  // namespace zerosched::detail
