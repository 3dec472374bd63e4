#include "comm/agree.h"

#include "comm/failure/whereabouts.h"

#include <ATen/ops/empty.h>

#include <algorithm>

namespace zerosched::detail {

namespace {

at::Tensor int64_scalar(int64_t value) {
  auto tensor = at::empty({1}, at::kLong);
  *tensor.mutable_data_ptr<int64_t>() = value;
  return tensor;
}

}  // namespace

void agree(Communicator& communicator, const std::string& local_error) {
  const int size = communicator.size();
  // The maximum of size - rank over failing ranks belongs to the lowest of them; 0 means that none failed.
  auto verdict = int64_scalar(local_error.empty() ? 0 : size - communicator.rank());
  communicator.all_reduce(verdict, ReduceOp::max, {InCall::current_or("agreement on errors")})->wait();
  const int64_t highest = *verdict.const_data_ptr<int64_t>();
  if (highest == 0) return;
  const int failing = static_cast<int>(size - highest);
  const std::string message = broadcast_bytes(communicator, local_error, failing, {"error message"});
  throw AgreedError("rank " + std::to_string(failing) + ": " + message);
}

bool on_all_ranks(Communicator& communicator, bool here, const char* what) {
  auto verdict = int64_scalar(here ? 1 : 0);
  communicator.all_reduce(verdict, ReduceOp::min, {what})->wait();
  return *verdict.const_data_ptr<int64_t>() != 0;
}

std::string broadcast_bytes(
    Communicator& communicator, const std::string& bytes, int root, CollectiveLabel label) {
  auto length = int64_scalar(static_cast<int64_t>(bytes.size()));
  communicator.broadcast(length, root, label)->wait();
  const int64_t byte_count = *length.const_data_ptr<int64_t>();
  auto buffer = at::empty({byte_count}, at::kByte);
  if (communicator.rank() == root) {
    std::copy(bytes.begin(), bytes.end(), static_cast<char*>(buffer.mutable_data_ptr()));
  }
  communicator.broadcast(buffer, root, label)->wait();
  return std::string(static_cast<const char*>(buffer.const_data_ptr()), static_cast<size_t>(byte_count));
}

}  // namespace zerosched::detail
