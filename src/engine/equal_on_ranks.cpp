#include "engine/equal_on_ranks.h"

#include "comm/agree.h"
#include "comm/failure/whereabouts.h"
#include "layout/description.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <sstream>

namespace zerosched::detail {
namespace {

bool all_equal(Communicator& communicator, int64_t value, const char* what) {
  // max(value) and max(~value) = ~min(value), so one reduction tells both ends.
  at::Tensor ends = at::empty({2}, at::kLong);
  ends.mutable_data_ptr<int64_t>()[0] = value;
  ends.mutable_data_ptr<int64_t>()[1] = ~value;
  communicator.all_reduce(ends, ReduceOp::max, {what})->wait();
  return ends.const_data_ptr<int64_t>()[0] == ~ends.const_data_ptr<int64_t>()[1];
}

// Bytes of any tensor as a flat one; a copy unless it is contiguous already.
at::Tensor flat_copy(const at::Tensor& tensor) { return tensor.detach().contiguous().view({-1}); }

}  // namespace

void check_same_on_all_ranks(Communicator& communicator, const std::vector<std::string>& lines) {
  if (all_equal(communicator, hash_of(lines), InCall::current_or("layout hash"))) return;
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
  uint64_t hash = 0;
  for (const at::Tensor& tensor : tensors) {
    if (tensor.numel() == 0) continue;
    const at::Tensor flat = flat_copy(tensor).cpu();
    hash = XXH3_64bits_withSeed(flat.const_data_ptr(), flat.nbytes(), hash + 1);
  }
  const bool same = all_equal(communicator, static_cast<int64_t>(hash), "parameter hash");
  if (same) return;
  throw AgreedError(
      "ShardingOptions().broadcast_parameters(false) says that every rank starts from the same "
      "parameters and buffers, but their values differ between ranks. Seed every rank alike, or let "
      "the optimizer broadcast rank 0's.");
}

}  // namespace zerosched::detail
