#include "engine/model.h"

#include "comm/agree.h"
#include "kernels/kernels.h"
#include "layout/description.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <iomanip>
#include <map>
#include <sstream>
#include <unordered_map>

namespace zerosched::detail {
namespace {

void check_trainable(const at::Tensor& parameter, const std::string& name) {
  TORCH_CHECK(parameter.is_leaf(), "parameter '", name,
      "' is not a leaf: it was computed from other tensors. Give the optimizer the tensors that it "
      "was computed from.");
  TORCH_CHECK(
      !parameter.is_inference(), "parameter '", name, "' was made in inference mode and cannot be trained.");
  TORCH_CHECK(kernels::is_supported(parameter.scalar_type()), "parameter '", name, "' is ",
      c10::toString(parameter.scalar_type()), "; Float, Double, BFloat16 and Half can be trained.");
  TORCH_CHECK(parameter.layout() == at::kStrided && parameter.is_non_overlapping_and_dense(), "parameter '",
      name, "' is not a dense tensor; call contiguous() on it before constructing the optimizer.");
}

// On all of them at once, because a move is the likely reason for a difference.
void check_devices(const Model& model, const device::Runtime& runtime) {
  TORCH_CHECK(model.device.is_cpu() || model.device.is_cuda(), "parameter '", model.names.front(), "' is on ",
      model.device, "; parameters on the CPU or on an NVIDIA GPU can be trained.");
  for (size_t p = 0; p < model.parameters.size(); ++p) {
    const at::Device device = runtime.device_of(model.parameters[p]);
    TORCH_CHECK(device == model.device, "parameter '", model.names[p], "' is on ", device, ", but '",
        model.names.front(), "' on ", model.device,
        "; move all of the module to one device before constructing the optimizer.");
  }
}

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

Model inspect(const std::vector<ParameterGroup>& groups, const NamedParameters& buffers,
    const device::Runtime& runtime) {
  Model model;
  for (const auto& [name, buffer] : buffers) {
    model.buffers.push_back(buffer);
    model.buffer_names.push_back(name);
  }
  struct Seen {
    std::string name;
    size_t group;
  };
  std::unordered_map<const c10::TensorImpl*, Seen> seen;
  std::map<std::string, const c10::TensorImpl*> by_name;
  for (size_t g = 0; g < groups.size(); ++g) {
    for (const auto& [name, parameter] : groups[g].named_parameters()) {
      TORCH_CHECK(parameter.defined(), "parameter '", name, "' of group ", g, " is undefined.");
      const c10::TensorImpl* identity = parameter.unsafeGetTensorImpl();
      const auto [first, is_new] = seen.try_emplace(identity, Seen{name, g});
      if (!is_new) {
        TORCH_CHECK(first->second.group == g, "parameter '", name, "' of group ", g, " is also in group ",
            first->second.group, ", as '", first->second.name, "'; a parameter belongs to one group.");
        if (name != first->second.name) model.tied.push_back({name, first->second.name});
        continue;
      }
      TORCH_CHECK(by_name.try_emplace(name, identity).second, "two parameters are named '", name,
          "'; checkpoints need a name of its own for each. Name them by group.");
      if (!parameter.requires_grad()) {
        model.frozen.push_back(parameter);
        model.frozen_names.push_back(name);
        continue;
      }
      check_trainable(parameter, name);
      model.parameters.push_back(parameter);
      model.names.push_back(name);
      model.specs.push_back({name, parameter.sizes().vec(), parameter.strides().vec(),
          parameter.scalar_type(), static_cast<int64_t>(g)});
    }
  }
  TORCH_CHECK(!model.parameters.empty(),
      "there is nothing to train: no parameter that requires a gradient was given.");
  model.device = runtime.device_of(model.parameters.front());
  check_devices(model, runtime);
  return model;
}

std::vector<std::string> names_of(const Model& model, const std::string& name) {
  std::vector<std::string> names = {name};
  for (const TiedName& tied : model.tied) {
    if (tied.first_name == name) names.push_back(tied.name);
  }
  return names;
}

void check_options(const std::vector<ParameterGroup>& groups, const torch::optim::OptimizerOptions& defaults,
    const ShardingOptions& sharding, const Algorithm& algorithm) {
  algorithm.check(defaults);
  for (size_t g = 0; g < groups.size(); ++g) {
    if (!groups[g].has_options()) continue;
    try {
      algorithm.check(groups[g].options());
    } catch (c10::Error& error) {
      TORCH_CHECK(false, "parameter group ", g, ": ", error.msg());
    }
  }
  TORCH_CHECK(sharding.bucket_buffers() >= 1, "ShardingOptions::bucket_buffers must be at least 1, got ",
      sharding.bucket_buffers(), ".");
  TORCH_CHECK(!sharding.max_grad_norm() || *sharding.max_grad_norm() > 0,
      "ShardingOptions::max_grad_norm must be positive, got ", sharding.max_grad_norm().value_or(0), ".");
}

std::vector<std::string> describe(const Model& model, const std::vector<ParameterGroup>& groups,
    const torch::optim::OptimizerOptions& defaults, const ShardingOptions& sharding,
    const Algorithm& algorithm) {
  std::vector<std::string> lines;
  std::ostringstream options;
  options << std::setprecision(17) << "ShardingOptions(bucket_bytes=" << sharding.bucket_bytes()
          << ", first_bucket_bytes=" << sharding.first_bucket_bytes()
          << ", bucket_buffers=" << sharding.bucket_buffers()
          << ", max_grad_norm=" << sharding.max_grad_norm().value_or(0) << ", reduce_dtype="
          << (sharding.reduce_dtype() ? c10::toString(*sharding.reduce_dtype()) : "default")
          << ", gradients=" << (sharding.gradients() == GradientInput::local ? "local" : "already_averaged")
          << ", overlap_backward=" << sharding.overlap_backward()
          << ", broadcast_parameters=" << sharding.broadcast_parameters() << ")";
  lines.push_back(options.str());
  for (size_t g = 0; g < groups.size(); ++g) {
    std::ostringstream line;
    line << std::setprecision(17) << "group " << g << " with " << algorithm.name() << '(';
    const char* separator = "";
    for (const auto& [name, value] :
        algorithm.values(groups[g].has_options() ? groups[g].options() : defaults)) {
      line << separator << name << '=' << value;
      separator = ", ";
    }
    line << ')';
    lines.push_back(line.str());
  }
  for (std::string& line : describe(model.specs)) lines.push_back(std::move(line));
  for (size_t f = 0; f < model.frozen.size(); ++f) {
    std::ostringstream line;
    line << "frozen parameter '" << model.frozen_names[f] << "' " << model.frozen[f].sizes() << ' '
         << c10::toString(model.frozen[f].scalar_type());
    lines.push_back(line.str());
  }
  for (size_t b = 0; b < model.buffers.size(); ++b) {
    std::ostringstream line;
    line << "module buffer '" << model.buffer_names[b] << "' " << model.buffers[b].sizes() << ' '
         << c10::toString(model.buffers[b].scalar_type());
    lines.push_back(line.str());
  }
  return lines;
}

void check_same_on_all_ranks(Communicator& communicator, const std::vector<std::string>& lines) {
  if (all_equal(communicator, hash_of(lines), "layout hash")) return;
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
  TORCH_CHECK(same,
      "ShardingOptions().broadcast_parameters(false) says that every rank starts from the same "
      "parameters and buffers, but their values differ between ranks. Seed every rank alike, or let "
      "the optimizer broadcast rank 0's.");
}

}  // namespace zerosched::detail
