#include "fakes/fake_nccl_exchange.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>

#include <cstring>
#include <mutex>
#include <utility>

namespace zerosched::testing {

namespace {

MPI_Comm wire = MPI_COMM_NULL;

at::ScalarType scalar_type(ncclDataType_t type) {
  switch (type) {
    case ncclFloat32:
      return at::kFloat;
    case ncclFloat64:
      return at::kDouble;
    case ncclBfloat16:
      return at::kBFloat16;
    case ncclFloat16:
      return at::kHalf;
    case ncclInt32:
      return at::kInt;
    case ncclInt64:
      return at::kLong;
    case ncclUint8:
      return at::kByte;
    default:
      return at::kChar;
  }
}

}  // namespace

void Exchange::connect() { MPI_Comm_dup(MPI_COMM_WORLD, &wire); }

size_t Exchange::bytes(ncclDataType_t type) { return c10::elementSize(scalar_type(type)); }

Exchange::Exchange(
    int rank, int size, int communicator, int64_t sequence, std::shared_ptr<std::atomic<bool>> aborted)
    : rank_(rank),
      size_(size),
      tag_(((communicator % 1000000) * 1000 + static_cast<int>(sequence % 1000)) * 2),
      aborted_(std::move(aborted)) {}

// MPI still knows the requests of one that has not ended, and may write the memory: both stay.
Exchange::~Exchange() {
  if (phase_ != Phase::headers && phase_ != Phase::data) return;
  struct Kept {
    std::vector<char> own_header, own_data;
    std::vector<std::vector<char>> headers, data;
    std::vector<MPI_Request> requests;
  };
  static auto* kept = new std::vector<std::unique_ptr<Kept>>;
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  kept->push_back(std::make_unique<Kept>(Kept{std::move(own_header_), std::move(own_data_),
      std::move(headers_), std::move(data_), std::move(requests_)}));
}

size_t Exchange::contribution_bytes() const {
  const size_t own = collective_.count * bytes(collective_.type);
  return collective_.kind == Kind::reduce_scatter ? own * static_cast<size_t>(size_) : own;
}

void Exchange::post(const void* send, size_t byte_count, std::vector<std::vector<char>>& received, int tag) {
  received.assign(static_cast<size_t>(size_), std::vector<char>(byte_count));
  std::memcpy(received[static_cast<size_t>(rank_)].data(), send, byte_count);
  requests_.clear();
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    requests_.resize(requests_.size() + 2, MPI_REQUEST_NULL);
    auto* request = &requests_[requests_.size() - 2];
    MPI_Irecv(received[static_cast<size_t>(peer)].data(), static_cast<int>(byte_count), MPI_BYTE, peer, tag,
        wire, request);
    MPI_Isend(send, static_cast<int>(byte_count), MPI_BYTE, peer, tag, wire, request + 1);
  }
}

bool Exchange::all_arrived() {
  int arrived = 0;
  MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &arrived, MPI_STATUSES_IGNORE);
  return arrived != 0;
}

bool Exchange::step() {
  if (*aborted_) return true;
  if (phase_ == Phase::start) {
    own_header_.resize(5 * sizeof(int64_t));
    const int64_t header[5] = {static_cast<int64_t>(collective_.kind),
        static_cast<int64_t>(collective_.count), collective_.type, collective_.op, collective_.root};
    std::memcpy(own_header_.data(), header, sizeof(header));
    post(own_header_.data(), own_header_.size(), headers_, tag_);
    phase_ = Phase::headers;
  }
  if (phase_ == Phase::headers) {
    if (!all_arrived()) return false;
    for (const auto& header : headers_) {
      if (header != own_header_) return false;  // for ever
    }
    own_data_.resize(contribution_bytes());
    if (!own_data_.empty()) std::memcpy(own_data_.data(), collective_.send, own_data_.size());
    post(own_data_.data(), own_data_.size(), data_, tag_ + 1);
    phase_ = Phase::data;
  }
  if (phase_ == Phase::data) {
    if (!all_arrived()) return false;
    if (collective_.kind != Kind::hello) compute();
    phase_ = Phase::done;
  }
  return true;
}

void Exchange::compute() {
  const size_t own = collective_.count * bytes(collective_.type);
  auto* out = static_cast<char*>(collective_.receive);
  if (collective_.kind == Kind::broadcast) {
    std::memcpy(out, data_[static_cast<size_t>(collective_.root)].data(), own);
    return;
  }
  if (collective_.kind == Kind::all_gather) {
    for (size_t rank = 0; rank < data_.size(); ++rank) std::memcpy(out + rank * own, data_[rank].data(), own);
    return;
  }
  const size_t offset = collective_.kind == Kind::reduce_scatter ? static_cast<size_t>(rank_) * own : 0;
  const auto part = [&](size_t rank) {
    return at::from_blob(data_[rank].data() + offset, {static_cast<int64_t>(collective_.count)},
        at::TensorOptions().dtype(scalar_type(collective_.type)));
  };
  // Rounded after every addition, as a ring of 16-bit values is.
  auto result = part(0).clone();
  for (size_t rank = 1; rank < data_.size(); ++rank) {
    result = collective_.op == ncclMax   ? at::maximum(result, part(rank))
             : collective_.op == ncclMin ? at::minimum(result, part(rank))
                                         : result.add(part(rank));
  }
  std::memcpy(out, result.const_data_ptr(), own);
}

}  // namespace zerosched::testing
