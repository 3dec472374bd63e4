#include "comm/mpi/stock_operations.h"

#include "comm/mpi/check.h"
#include "comm/mpi/group.h"
#include "comm/mpi/reduce_tree.h"
#include "comm/mpi/types.h"

#include <algorithm>

namespace zerosched::detail {

bool StockOperation::poll_data() {
  int done = 0;
  ZEROSCHED_MPI_CALL(
      MPI_Testall, static_cast<int>(requests_.size()), requests_.data(), &done, MPI_STATUSES_IGNORE);
  if (!done) return false;
  finish();
  set_data_done();
  return true;
}

void Broadcast::start_data() {
  auto* data = static_cast<char*>(tensor(0).data_ptr());
  const auto byte_count = static_cast<int64_t>(tensor(0).nbytes());
  const int64_t piece = group().options().max_count;
  for (int64_t offset = 0; offset < byte_count; offset += piece) {
    requests_.push_back(MPI_REQUEST_NULL);
    ZEROSCHED_MPI_CALL(MPI_Ibcast, data + offset, static_cast<int>(std::min(piece, byte_count - offset)),
        MPI_BYTE, header().root, group().comm(), &requests_.back());
  }
}

void Duplicate::start_data() {
  requests_.push_back(MPI_REQUEST_NULL);
  ZEROSCHED_MPI_CALL(MPI_Comm_idup, group().comm(), &result_, &requests_.back());
}

void AllReduce::start_data() {
  const auto dtype = tensor(0).scalar_type();
  const int64_t numel = tensor(0).numel();
  auto* data = static_cast<char*>(tensor(0).data_ptr());
  auto element_bytes = static_cast<int64_t>(tensor(0).element_size());
  if (dtype == at::kBFloat16 || dtype == at::kHalf) {
    widened_.resize(static_cast<size_t>(numel));
    widen_range(dtype, data, widened_.data(), numel);
    data = reinterpret_cast<char*>(widened_.data());
    element_bytes = sizeof(float);
  }
  const auto op = reduction_of(static_cast<ReduceOp>(header().reduction));
  const int64_t piece = group().options().max_count;
  for (int64_t offset = 0; offset < numel; offset += piece) {
    requests_.push_back(MPI_REQUEST_NULL);
    ZEROSCHED_MPI_CALL(MPI_Iallreduce, MPI_IN_PLACE, data + offset * element_bytes,
        static_cast<int>(std::min(piece, numel - offset)), reducible_type(dtype), op, group().comm(),
        &requests_.back());
  }
}

void AllReduce::finish() {
  if (!widened_.empty()) {
    narrow_range(tensor(0).scalar_type(), widened_.data(), tensor(0).data_ptr(), tensor(0).numel());
  }
}

}  // namespace zerosched::detail
