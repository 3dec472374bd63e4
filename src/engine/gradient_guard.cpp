#include "engine/gradient_guard.h"

#include <c10/core/Storage.h>
#include <c10/core/TensorImpl.h>

#include <utility>

namespace zerosched::detail {

at::Tensor make_gradient_guard(const at::Tensor& parameter, const std::string& name) {
  c10::Storage storage(c10::Storage::use_byte_size_t(), parameter.nbytes(),
      c10::DataPtr(nullptr, parameter.device()),
      /*allocator=*/nullptr, /*resizable=*/false);
  storage.unsafeGetStorageImpl()->release_data_and_set_meta_custom_data_ptr_error_msg_(
      "zerosched: .grad of parameter '" + name +
      "' was used between backward and step(), but its gradient has left for the optimizer's buffers. Clip "
      "with zerosched::clip_grad_norm_(optimizer, max_norm), log optimizer.grad_norms() after step(), run "
      "all "
      "backward passes but the last under no_sync(), or construct the optimizer with "
      "ShardingOptions().overlap_backward(false) to work on .grad.");
  at::Tensor guard = at::detail::make_tensor<c10::TensorImpl>(std::move(storage),
      c10::DispatchKeySet(parameter.is_cuda() ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU),
      parameter.dtype());
  guard.unsafeGetTensorImpl()->set_sizes_and_strides(parameter.sizes(), parameter.strides());
  return guard;
}

}  // namespace zerosched::detail
