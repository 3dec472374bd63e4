#include "comm/mpi/message_reduce.h"

#include "comm/mpi/check.h"
#include "comm/mpi/group.h"
#include "comm/mpi/tags.h"

#include <algorithm>
#include <utility>

namespace zerosched::detail {

namespace {

// Of receive buffers, which hold what is in flight, partial sums that wait and a sum in the making: at 100 Gbit/s what
// arrives in a third of a millisecond, longer than the progress thread sleeps.
constexpr int64_t kScratchBytes = int64_t{4} << 20;
constexpr int kMinWindow = 3;
// In flight, over all peers and at least to each: MPI takes them at once, and they wait where the network makes them.
constexpr int kSends = 64;
constexpr int kMinSendsPerLane = 2, kMaxSendsPerLane = 16;
// A source is told of room when so much of what it may get at most has become free.
constexpr int64_t kCreditsPerWindow = 4;

}  // namespace

MessageReduce::MessageReduce(MpiGroup& group, ReducePlan plan, int64_t sequence)
    : group_(group),
      plan_(std::move(plan)),
      sequence_(sequence),
      tree_(static_cast<int>(plan_.sources.size())),
      element_bytes_(static_cast<int64_t>(c10::elementSize(plan_.dtype))) {}

void MessageReduce::start() {
  started_ = true;
  const auto sources = static_cast<int>(plan_.sources.size());
  for (int source = 0; source < sources; ++source) {
    if (plan_.sources[static_cast<size_t>(source)].peer < 0) own_ = source;
  }
  for (int distance = 1; distance < sources; ++distance)
    arrival_order_.push_back((own_ + distance) % sources);
  chunk_size_ = std::min(plan_.slice_numel, group_.message_bytes() / partial_bytes(plan_.dtype));
  chunks_per_slice_ = (plan_.slice_numel + chunk_size_ - 1) / chunk_size_;
  chunk_count_ = chunks_per_slice_ * static_cast<int64_t>(plan_.sums.size());
  const int64_t buffers = kScratchBytes / group_.message_bytes() - tree_.max_waiting() - 1;
  window_ =
      static_cast<int>(std::clamp(buffers, int64_t{kMinWindow}, chunk_count_ * (sources - 1) + kMinWindow));
  const auto lanes = static_cast<int>(plan_.sends.size());
  sends_per_lane_ = lanes == 0 ? 0 : std::clamp(kSends / lanes, kMinSendsPerLane, kMaxSendsPerLane);
  receives_.resize(static_cast<size_t>(window_));
  requests_.assign(
      static_cast<size_t>(window_) + plan_.sends.size() * static_cast<size_t>(1 + sends_per_lane_),
      MPI_REQUEST_NULL);
  completed_.resize(requests_.size());
  credited_.assign(plan_.sources.size(), 0);
  granted_ = credited_;
  lanes_.resize(plan_.sends.size());
  for (size_t lane = 0; lane < lanes_.size(); ++lane) {
    lanes_[lane].chunk_count = chunks_per_slice_ * static_cast<int64_t>(plan_.sends[lane].slices.size());
    sends_total_ += lanes_[lane].chunk_count;
    credit_arrived(lane);
  }
}

bool MessageReduce::poll() {
  if (!started_) start();
  // The oldest reduce-scatter gets all receive buffers first; this bounds them, and finishes it soonest.
  const bool has_turn = receives_posted_ < receive_count() && group_.take_receive_turn();
  if (has_turn) post_receives();
  drop_sent_credits();
  int count = 0;
  ZEROSCHED_MPI_CALL(MPI_Testsome, static_cast<int>(requests_.size()), requests_.data(), &count,
      completed_.data(), MPI_STATUSES_IGNORE);
  if (count == MPI_UNDEFINED || count == 0) return false;
  const int lanes = static_cast<int>(lanes_.size());
  for (int i = 0; i < count; ++i) {
    const int index = completed_[static_cast<size_t>(i)];
    if (index < window_) {
      arrived(receives_[static_cast<size_t>(index)]);
    } else if (index < window_ + lanes) {
      credit_arrived(static_cast<size_t>(index - window_));
    } else {
      ++sends_done_;
    }
  }
  post_sends();
  if (has_turn) post_receives();
  return true;
}

// Takes note of the peer's last word, at the start of none, and waits for its next. A peer that is by mistake in a
// larger reduce-scatter may have room for more than there is to send.
void MessageReduce::credit_arrived(size_t index) {
  auto& lane = lanes_[index];
  lane.allowed = std::min(lane.received_credit, lane.chunk_count);
  if (lane.allowed == lane.chunk_count) return;
  ZEROSCHED_MPI_CALL(MPI_Irecv, &lane.received_credit, 1, MPI_INT64_T, plan_.sends[index].peer,
      credit_tag(sequence_), group_.comm(), &requests_[static_cast<size_t>(window_) + index]);
}

void MessageReduce::post_sends() {
  for (size_t index = 0; index < lanes_.size(); ++index) {
    auto& lane = lanes_[index];
    const auto& send = plan_.sends[index];
    auto* requests = &requests_[static_cast<size_t>(window_) + lanes_.size() +
                                index * static_cast<size_t>(sends_per_lane_)];
    for (int slot = 0; slot < sends_per_lane_ && lane.posted < lane.allowed; ++slot) {
      if (requests[slot] != MPI_REQUEST_NULL) continue;
      ZEROSCHED_MPI_CALL(MPI_Isend, chunk_of(send.slices, lane.posted, send.partial),
          static_cast<int>(chunk_numel(lane.posted) * bytes_of(send.partial)), MPI_BYTE, send.peer,
          reduce_scatter_tag(sequence_), group_.comm(), &requests[slot]);
      ++lane.posted;
    }
  }
}

int64_t MessageReduce::receive_count() const {
  return chunk_count_ * static_cast<int64_t>(arrival_order_.size());
}

void MessageReduce::post_receives() {
  const auto others = static_cast<int64_t>(arrival_order_.size());
  const int64_t total = receive_count();
  if (receives_posted_ == total) return;
  for (int slot = 0; slot < window_ && receives_posted_ < total; ++slot) {
    auto& request = requests_[static_cast<size_t>(slot)];
    if (request != MPI_REQUEST_NULL) continue;
    auto& receive = receives_[static_cast<size_t>(slot)];
    receive.chunk = receives_posted_ / others;
    receive.source = arrival_order_[static_cast<size_t>(receives_posted_ % others)];
    receive.buffer = group_.take_buffer();
    // For the whole buffer: a rank that is by mistake in a larger reduce-scatter may send more than this chunk,
    // and Open MPI 4.1 writes a message that is fetched from its sender (CMA) beyond a receive that is too short.
    ZEROSCHED_MPI_CALL(MPI_Irecv, receive.buffer, static_cast<int>(group_.message_bytes()), MPI_BYTE,
        plan_.sources[static_cast<size_t>(receive.source)].peer, reduce_scatter_tag(sequence_), group_.comm(),
        &request);
    ++granted_[static_cast<size_t>(receive.source)];
    ++receives_posted_;
  }
  const int64_t worth_a_message = std::max<int64_t>(1, window_ / (others * kCreditsPerWindow));
  for (const int source : arrival_order_) {
    const auto index = static_cast<size_t>(source);
    const int64_t news = granted_[index] - credited_[index];
    if (news > 0 && (news >= worth_a_message || granted_[index] == chunk_count_))
      give_credit(index, granted_[index]);
  }
  if (receives_posted_ == total) group_.pass_receive_turn();
}

void MessageReduce::drop_sent_credits() {
  while (!credits_.empty()) {
    int sent = 0;
    ZEROSCHED_MPI_CALL(MPI_Test, &credits_.front().request, &sent, MPI_STATUS_IGNORE);
    if (!sent) return;
    credits_.pop_front();
  }
}

void MessageReduce::give_credit(size_t source, int64_t chunks) {
  auto& credit = credits_.emplace_back(Credit{chunks, MPI_REQUEST_NULL});
  ZEROSCHED_MPI_CALL(MPI_Isend, &credit.chunks, 1, MPI_INT64_T, plan_.sources[source].peer,
      credit_tag(sequence_), group_.comm(), &credit.request);
  credited_[source] = chunks;
}

MessageReduce::Chunk& MessageReduce::chunk_state(int64_t index) {
  const auto position = static_cast<size_t>(index - chunks_retired_);
  while (chunks_.size() <= position) {
    chunks_.emplace_back();
    chunks_.back().index = chunks_retired_ + static_cast<int64_t>(chunks_.size()) - 1;
  }
  auto& chunk = chunks_[position];
  if (chunk.nodes.empty()) {
    const auto& own = plan_.sources[static_cast<size_t>(own_)];
    chunk.nodes.assign(static_cast<size_t>(tree_.size()), Addend{nullptr, false});
    chunk.nodes[static_cast<size_t>(own_)] = {chunk_of(own.slices, index, own.partial), own.partial};
  }
  return chunk;
}

void MessageReduce::arrived(const Receive& receive) {
  auto& chunk = chunk_state(receive.chunk);
  chunk.nodes[static_cast<size_t>(receive.source)] = {
      receive.buffer, plan_.sources[static_cast<size_t>(receive.source)].partial};
  for (int node = receive.source; node != tree_.root();) {
    const int parent = tree_[node].parent;
    const int left = tree_[parent].left;
    const int right = tree_[parent].right;
    if (chunk.nodes[static_cast<size_t>(left)].data == nullptr ||
        chunk.nodes[static_cast<size_t>(right)].data == nullptr) {
      return;
    }
    add(chunk, left, right, parent);
    node = parent;
  }
  chunk.done = true;
  ++chunks_done_;
  while (!chunks_.empty() && chunks_.front().done) {
    chunks_.pop_front();
    ++chunks_retired_;
  }
}

void MessageReduce::add(Chunk& chunk, int left, int right, int parent) {
  const bool at_root = parent == tree_.root();
  const bool rounds = at_root && plan_.last;
  const bool narrow = element_bytes_ < partial_bytes(plan_.dtype);
  const Addend a = chunk.nodes[static_cast<size_t>(left)];
  const Addend b = chunk.nodes[static_cast<size_t>(right)];
  // A sum goes where one of its addends was if that is a buffer of ours and wide enough.
  const auto reusable = [&](int node, const Addend& addend) {
    return node != own_ && (addend.partial || !narrow);
  };
  char* out = nullptr;
  if (at_root) {
    const auto slice = static_cast<size_t>(chunk.index / chunks_per_slice_);
    out = plan_.sums[slice] + first_element(chunk.index) * bytes_of(!plan_.last);
  } else if (reusable(left, a)) {
    out = static_cast<char*>(const_cast<void*>(a.data));
  } else if (reusable(right, b)) {
    out = static_cast<char*>(const_cast<void*>(b.data));
  } else {
    out = group_.take_buffer();
  }
  add_range(plan_.dtype, a, b, out, rounds, chunk_numel(chunk.index));
  if (left != own_ && a.data != out) group_.return_buffer(static_cast<char*>(const_cast<void*>(a.data)));
  if (right != own_ && b.data != out) group_.return_buffer(static_cast<char*>(const_cast<void*>(b.data)));
  chunk.nodes[static_cast<size_t>(parent)] = Addend{out, !rounds};
}

int64_t MessageReduce::first_element(int64_t index) const { return index % chunks_per_slice_ * chunk_size_; }

int64_t MessageReduce::chunk_numel(int64_t index) const {
  return std::min(chunk_size_, plan_.slice_numel - first_element(index));
}

const char* MessageReduce::chunk_of(
    const std::vector<const char*>& slices, int64_t index, bool partial) const {
  return slices[static_cast<size_t>(index / chunks_per_slice_)] + first_element(index) * bytes_of(partial);
}

}  // namespace zerosched::detail
