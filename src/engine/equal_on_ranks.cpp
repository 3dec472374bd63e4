#include "engine/equal_on_ranks.h"

#include "comm/agree.h"
#include "comm/failure/whereabouts.h"
#include "layout/description.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <sstream>

namespace zerosched::detail {
namespace {

at::Tensor flat_copy(const at::Tensor& tensor) { return tensor.detach().contiguous().view({-1}); }

}  // namespace

int64_t hash_of(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return 0;
  const at::Tensor flat = flat_copy(tensor).cpu();
  return static_cast<int64_t>(XXH3_64bits(flat.const_data_ptr(), flat.nbytes()));
}

// max(value) and max(~value) = ~min(value), so one reduction tells both ends.
std::vector<size_t> differing(
    Communicator& communicator, const std::vector<int64_t>& values, const char* what) {
  const auto count = static_cast<int64_t>(values.size());
  const at::Tensor ends = at::empty({2 * count}, at::kLong);
  auto* most = ends.mutable_data_ptr<int64_t>();
  auto* least = most + count;
  std::copy(values.begin(), values.end(), most);
  std::transform(values.begin(), values.end(), least, [](int64_t value) { return ~value; });
  communicator.all_reduce(ends, ReduceOp::max, {what})->wait();
  std::vector<size_t> found;
  for (size_t i = 0; i < values.size(); ++i) {
    if (most[i] != ~least[i]) found.push_back(i);
  }
  return found;
}

void check_same_on_all_ranks(Communicator& communicator, const std::vector<std::string>& lines) {
  if (differing(communicator, {hash_of(lines)}, InCall::current_or("layout hash")).empty()) return;
  std::ostringstream joined;
  for (const std::string& line : lines) joined << line << '\n';
  std::istringstream reference_text(broadcast_bytes(communicator, joined.str(), 0, {"layout of rank 0"}));
  std::vector<std::string> reference;
  for (std::string line; std::getline(reference_text, line);) reference.push_back(line);
  agree(communicator, first_difference(lines, reference, communicator.rank()));
}

void broadcast_values(Communicator& communicator, const std::vector<at::Tensor>& tensors) {
  const at::NoGradGuard no_grad;
  for (const at::Tensor& tensor : tensors) {
    if (tensor.numel() == 0) continue;
    const at::Tensor flat = flat_copy(tensor);
    communicator.broadcast(flat, 0, {"initial values"})->wait();
    if (flat.const_data_ptr() != tensor.const_data_ptr()) tensor.detach().copy_(flat.view(tensor.sizes()));
  }
}

void check_same_values(Communicator& communicator, const std::vector<at::Tensor>& tensors) {
  std::vector<int64_t> hashes;
  for (const at::Tensor& tensor : tensors) hashes.push_back(hash_of(tensor));
  if (differing(communicator, hashes, "parameter hashes").empty()) return;
  throw AgreedError(
      "ShardingOptions().broadcast_parameters(false) says that every rank starts from the same "
      "parameters and buffers, but their values differ between ranks. Seed every rank alike, or let "
      "the optimizer broadcast rank 0's.");
}

}  // namespace zerosched::detail
