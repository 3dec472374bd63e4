#include "comm/mpi/message_gather.h"

#include "comm/mpi/check.h"
#include "comm/mpi/group.h"
#include "comm/mpi/tags.h"

#include <algorithm>
#include <utility>

namespace zerosched::detail {

namespace {

// Over all flows, and of each at most and at least: what arrives while the progress thread sleeps finds its place.
constexpr int kInFlight = 256;
constexpr int kMinPerFlow = 2, kMaxPerFlow = 64;

}  // namespace

MessageGather::MessageGather(MpiGroup& group, int64_t slice_bytes, std::vector<GatherLane> sends,
    std::vector<GatherLane> receives, int64_t sequence)
    : group_(group), slice_bytes_(slice_bytes), sequence_(sequence) {
  for (auto& lane : receives) flows_.push_back({std::move(lane), false});
  for (auto& lane : sends) flows_.push_back({std::move(lane), true});
}

void MessageGather::start() {
  started_ = true;
  if (flows_.empty()) return;
  chunk_bytes_ = std::min(slice_bytes_, group_.message_bytes());
  chunks_per_slice_ = (slice_bytes_ + chunk_bytes_ - 1) / chunk_bytes_;
  in_flight_ = std::clamp(kInFlight / static_cast<int>(flows_.size()), kMinPerFlow, kMaxPerFlow);
  requests_.assign(flows_.size() * static_cast<size_t>(in_flight_), MPI_REQUEST_NULL);
  completed_.resize(requests_.size());
  for (size_t flow = 0; flow < flows_.size(); ++flow) {
    flows_[flow].total = chunks_per_slice_ * static_cast<int64_t>(flows_[flow].lane.slices.size());
    left_ += flows_[flow].total;
    post(flow);
  }
}

bool MessageGather::poll() {
  if (!started_) {
    start();
    return true;
  }
  int count = 0;
  ZEROSCHED_MPI_CALL(MPI_Testsome, static_cast<int>(requests_.size()), requests_.data(), &count,
      completed_.data(), MPI_STATUSES_IGNORE);
  if (count == MPI_UNDEFINED || count == 0) return false;
  left_ -= count;
  for (size_t flow = 0; flow < flows_.size(); ++flow) post(flow);
  return true;
}

void MessageGather::post(size_t index) {
  auto& flow = flows_[index];
  auto* requests = &requests_[index * static_cast<size_t>(in_flight_)];
  for (int slot = 0; slot < in_flight_ && flow.posted < flow.total; ++slot) {
    if (requests[slot] != MPI_REQUEST_NULL) continue;
    const int64_t first = flow.posted % chunks_per_slice_ * chunk_bytes_;
    char* data = flow.lane.slices[static_cast<size_t>(flow.posted / chunks_per_slice_)] + first;
    const auto count = static_cast<int>(std::min(chunk_bytes_, slice_bytes_ - first));
    const int tag = all_gather_tag(sequence_);
    if (flow.sends) {
      ZEROSCHED_MPI_CALL(
          MPI_Isend, data, count, MPI_BYTE, flow.lane.peer, tag, group_.comm(), &requests[slot]);
    } else {
      ZEROSCHED_MPI_CALL(
          MPI_Irecv, data, count, MPI_BYTE, flow.lane.peer, tag, group_.comm(), &requests[slot]);
    }
    ++flow.posted;
  }
}

}  // namespace zerosched::detail
