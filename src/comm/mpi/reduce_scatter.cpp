#include "comm/mpi/reduce_scatter.h"

#include "comm/mpi/check.h"
#include "comm/mpi/group.h"
#include "comm/mpi/tags.h"

#include <algorithm>
#include <cstring>

namespace zerosched::detail {

namespace {

// Sends in flight per peer: enough that the receiver always finds the next chunk announced.
constexpr int kSendsPerPeer = 3;
// Receives in flight: two chunks from every peer, within bounds that keep the scratch small.
constexpr int kMinWindow = 3;
constexpr int kMaxWindow = 16;
constexpr int64_t kScratchBytes = int64_t{4} << 20;
constexpr int64_t kMinChunkBytes = int64_t{32} << 10;

}  // namespace

void ReduceScatter::start_data() {
  const auto dtype = tensor(0).scalar_type();
  const int ranks = group().size();
  slice_elements_ = tensor(1).numel();
  element_bytes_ = static_cast<int64_t>(tensor(0).element_size());
  if (ranks == 1 || slice_elements_ == 0) {
    if (tensor(0).data_ptr() != tensor(1).data_ptr()) {
      std::memcpy(tensor(1).data_ptr(), tensor(0).data_ptr(), tensor(1).nbytes());
    }
    return;
  }
  const auto& tree = group().reduce_tree();
  window_ = std::clamp(2 * (ranks - 1), kMinWindow, kMaxWindow);
  // Every receive in flight, every waiting partial sum and one sum in the making hold a buffer.
  const int64_t buffers = window_ + tree.max_waiting() + 1;
  const int64_t chunk_bytes =
      std::min(std::max(kScratchBytes / buffers, kMinChunkBytes), group().options().chunk_bytes);
  chunk_size_ = std::min(slice_elements_, chunk_bytes / partial_bytes(dtype));
  chunk_count_ = (slice_elements_ + chunk_size_ - 1) / chunk_size_;
  sends_posted_.assign(static_cast<size_t>(ranks - 1), 0);
  receives_.resize(static_cast<size_t>(window_));
  requests_.assign(
      static_cast<size_t>(window_) + kSendsPerPeer * static_cast<size_t>(ranks - 1), MPI_REQUEST_NULL);
  completed_.resize(requests_.size());
  post_sends();
}

bool ReduceScatter::poll_data() {
  if (chunk_count_ == 0) {
    set_data_done();
    return true;
  }
  post_receives();
  int count = 0;
  ZEROSCHED_MPI_CALL(MPI_Testsome, static_cast<int>(requests_.size()), requests_.data(), &count,
      completed_.data(), MPI_STATUSES_IGNORE);
  if (count == MPI_UNDEFINED || count == 0) return false;
  bool sent = false;
  for (int i = 0; i < count; ++i) {
    const int index = completed_[static_cast<size_t>(i)];
    if (index < window_) {
      arrived(receives_[static_cast<size_t>(index)]);
    } else {
      ++sends_done_;
      sent = true;
    }
  }
  if (sent) post_sends();
  post_receives();
  if (chunks_done_ == chunk_count_ && sends_done_ == chunk_count_ * (group().size() - 1)) set_data_done();
  return true;
}

void ReduceScatter::post_sends() {
  const int ranks = group().size();
  const int tag = reduce_scatter_tag(header().sequence);
  for (int distance = 1; distance < ranks; ++distance) {
    // The receiver takes its next higher rank first, so that not all ranks ask the same one.
    const int peer = (group().rank() - distance + ranks) % ranks;
    auto& posted = sends_posted_[static_cast<size_t>(distance - 1)];
    auto* lane = &requests_[static_cast<size_t>(window_) + kSendsPerPeer * static_cast<size_t>(distance - 1)];
    for (int slot = 0; slot < kSendsPerPeer && posted < chunk_count_; ++slot) {
      if (lane[slot] != MPI_REQUEST_NULL) continue;
      ZEROSCHED_MPI_CALL(MPI_Isend, slice(peer) + posted * chunk_size_ * element_bytes_,
          static_cast<int>(chunk_elements(posted) * element_bytes_), MPI_BYTE, peer, tag, group().comm(),
          &lane[slot]);
      ++posted;
    }
  }
}

void ReduceScatter::post_receives() {
  const int64_t peers = group().size() - 1;
  const int64_t total = chunk_count_ * peers;
  if (receives_posted_ == total) return;
  // The oldest reduce-scatter gets all receive buffers first; this bounds them, and finishes it soonest.
  if (!group().take_receive_turn()) return;
  const int tag = reduce_scatter_tag(header().sequence);
  for (int slot = 0; slot < window_ && receives_posted_ < total; ++slot) {
    auto& request = requests_[static_cast<size_t>(slot)];
    if (request != MPI_REQUEST_NULL) continue;
    auto& receive = receives_[static_cast<size_t>(slot)];
    receive.chunk = receives_posted_ / peers;
    const auto distance = static_cast<int>(receives_posted_ % peers) + 1;
    receive.peer = (group().rank() + distance) % group().size();
    receive.buffer = group().take_buffer();
    // For the whole buffer: a rank that is by mistake in a larger reduce-scatter may send more than this chunk,
    // and Open MPI 4.1 writes a message that is fetched from its sender (CMA) beyond a receive that is too short.
    ZEROSCHED_MPI_CALL(MPI_Irecv, receive.buffer, static_cast<int>(group().options().chunk_bytes), MPI_BYTE,
        receive.peer, tag, group().comm(), &request);
    ++receives_posted_;
  }
  if (receives_posted_ == total) group().pass_receive_turn();
}

ReduceScatter::Chunk& ReduceScatter::chunk_state(int64_t index) {
  const auto position = static_cast<size_t>(index - chunks_retired_);
  while (chunks_.size() <= position) {
    chunks_.emplace_back();
    chunks_.back().index = chunks_retired_ + static_cast<int64_t>(chunks_.size()) - 1;
  }
  auto& chunk = chunks_[position];
  if (chunk.nodes.empty()) {
    chunk.nodes.assign(static_cast<size_t>(group().reduce_tree().size()), Addend{nullptr, false});
    const int rank = group().rank();
    chunk.nodes[static_cast<size_t>(rank)].data = slice(rank) + index * chunk_size_ * element_bytes_;
  }
  return chunk;
}

void ReduceScatter::arrived(const Receive& receive) {
  const auto& tree = group().reduce_tree();
  auto& chunk = chunk_state(receive.chunk);
  chunk.nodes[static_cast<size_t>(receive.peer)].data = receive.buffer;
  for (int node = receive.peer; node != tree.root();) {
    const int parent = tree[node].parent;
    const int left = tree[parent].left;
    const int right = tree[parent].right;
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

void ReduceScatter::add(Chunk& chunk, int left, int right, int parent) {
  const auto dtype = tensor(0).scalar_type();
  const bool last = parent == group().reduce_tree().root();
  const bool narrow = element_bytes_ < partial_bytes(dtype);
  const Addend a = chunk.nodes[static_cast<size_t>(left)];
  const Addend b = chunk.nodes[static_cast<size_t>(right)];
  const int own = group().rank();
  // A sum goes where one of its addends was if that is a buffer of ours and wide enough.
  const auto reusable = [&](int node, const Addend& addend) {
    return node != own && (addend.partial || !narrow);
  };
  char* out = nullptr;
  if (last) {
    out = static_cast<char*>(tensor(1).data_ptr()) + chunk.index * chunk_size_ * element_bytes_;
  } else if (reusable(left, a)) {
    out = static_cast<char*>(const_cast<void*>(a.data));
  } else if (reusable(right, b)) {
    out = static_cast<char*>(const_cast<void*>(b.data));
  } else {
    out = group().take_buffer();
  }
  add_range(dtype, a, b, out, last, chunk_elements(chunk.index));
  if (left != own && a.data != out) group().return_buffer(static_cast<char*>(const_cast<void*>(a.data)));
  if (right != own && b.data != out) group().return_buffer(static_cast<char*>(const_cast<void*>(b.data)));
  chunk.nodes[static_cast<size_t>(parent)] = Addend{out, !last};
}

int64_t ReduceScatter::chunk_elements(int64_t index) const {
  return std::min(chunk_size_, slice_elements_ - index * chunk_size_);
}

char* ReduceScatter::slice(int rank) const {
  return static_cast<char*>(tensor(0).data_ptr()) + rank * slice_elements_ * element_bytes_;
}

}  // namespace zerosched::detail
