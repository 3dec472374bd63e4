#include "engine/toy.h"

#include "base/message_of.h"
#include "support/gather.h"

#include <torch/nn/module.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <numeric>

namespace zerosched::testing {

NamedParameters make_parameters(const std::vector<std::vector<int64_t>>& shapes, at::ScalarType dtype) {
  NamedParameters parameters;
  for (size_t i = 0; i < shapes.size(); ++i) {
    auto generator = at::detail::createCPUGenerator(1000 + i);
    at::Tensor value = at::randn(shapes[i], generator, at::TensorOptions().dtype(at::kDouble)).to(dtype);
    // Not "p" + ..., of which GCC 12 warns without reason where LibTorch wants C++20.
    parameters.emplace_back(std::string("p").append(std::to_string(i)), value.requires_grad_());
  }
  return parameters;
}

NamedParameters parameters_of(const torch::nn::Module& module) {
  NamedParameters parameters;
  for (const auto& item : module.named_parameters()) parameters.emplace_back(item.key(), item.value());
  return parameters;
}

std::vector<std::vector<int64_t>> odd_shapes() {
  return {{7}, {3, 5}, {}, {71}, {0, 4}, {100, 3}, {1}, {2, 1, 2}, {7}, {33}};
}

at::Tensor random_like(const at::Tensor& tensor, int64_t step, int64_t rank, int64_t parameter) {
  auto generator =
      at::detail::createCPUGenerator(static_cast<uint64_t>((step * 131 + rank) * 1009 + parameter + 1));
  return at::randn(tensor.sizes(), generator, at::TensorOptions().dtype(at::kDouble))
      .to(tensor.scalar_type());
}

Gradients random_gradients(const NamedParameters& parameters, int64_t step, int64_t rank) {
  Gradients gradients;
  for (size_t i = 0; i < parameters.size(); ++i) {
    gradients[parameters[i].first] = random_like(parameters[i].second, step, rank, static_cast<int64_t>(i));
  }
  return gradients;
}

Gradients mean_gradients(int size, const std::function<Gradients(int)>& of_rank) {
  Gradients mean;
  for (int rank = 0; rank < size; ++rank) {
    for (const auto& [name, gradient] : of_rank(rank)) {
      if (!gradient.defined()) continue;
      at::Tensor& sum = mean[name];
      const at::Tensor term = gradient.to(at::kDouble) / size;
      sum = sum.defined() ? sum + term : term;
    }
  }
  return mean;
}

void backward(const NamedParameters& parameters, const Gradients& gradients, std::vector<size_t> order) {
  if (order.empty()) {
    order.resize(parameters.size());
    std::iota(order.begin(), order.end(), size_t{0});
  }
  at::Tensor loss;
  for (const size_t i : order) {
    const auto gradient = gradients.find(parameters[i].first);
    if (gradient == gradients.end() || !gradient->second.defined()) continue;
    const at::Tensor term = (parameters[i].second * gradient->second).sum().to(at::kDouble);
    loss = loss.defined() ? loss + term : term;
  }
  if (loss.defined()) loss.backward();
}

void set_gradients(const NamedParameters& parameters, const Gradients& gradients) {
  for (const auto& [name, parameter] : parameters) {
    const auto gradient = gradients.find(name);
    if (gradient == gradients.end() || !gradient->second.defined()) {
      parameter.mutable_grad().reset();
    } else {
      parameter.mutable_grad() = gradient->second.clone();
    }
  }
}

State full_state(ShardedOptimizer& optimizer) {
  State state;
  for (const char* which : {"z", "x", "v", "y"}) state[which] = optimizer.full_state(which);
  return state;
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes() || a.scalar_type() != b.scalar_type()) return false;
  if (a.numel() == 0) return true;
  const at::Tensor left = a.detach().contiguous();
  const at::Tensor right = b.detach().contiguous();
  return std::memcmp(left.const_data_ptr(), right.const_data_ptr(), left.nbytes()) == 0;
}

void expect_same_bits(const State& a, const State& b) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [which, tensors] : a) {
    for (const auto& [name, tensor] : tensors) {
      EXPECT_TRUE(same_bits(tensor, b.at(which).at(name))) << which << " of " << name;
    }
  }
}

void expect_parameters_are(
    const NamedParameters& parameters, const std::map<std::string, at::Tensor>& values) {
  std::string bytes;
  for (const auto& [name, parameter] : parameters) {
    EXPECT_TRUE(same_bits(parameter, values.at(name))) << name;
    const at::Tensor contiguous = parameter.detach().contiguous();
    bytes.append(static_cast<const char*>(contiguous.const_data_ptr()), contiguous.nbytes());
  }
  const std::string digest = std::to_string(std::hash<std::string>()(bytes));
  for (const std::string& other : gather_texts(digest))
    EXPECT_EQ(other, digest) << "parameters differ between ranks";
}

void expect_close(const State& state, const Reference& reference, double tolerance) {
  for (const auto& [which, tensors] : state) {
    for (const auto& [name, tensor] : tensors) {
      if (tensor.numel() == 0) continue;
      const at::Tensor expected = reference.get(which, name);
      const double error = (tensor.to(at::kDouble) - expected).abs().max().item<double>();
      EXPECT_LE(error, tolerance * std::max(expected.abs().max().item<double>(), 1e-30))
          << which << " of " << name;
    }
  }
}

void expect_error(const std::function<void()>& function, const std::vector<std::string>& parts) {
  try {
    function();
  } catch (const std::exception& error) {
    const std::string message = detail::message_of(error);
    for (const std::string& part : parts) {
      EXPECT_NE(message.find(part), std::string::npos) << "'" << part << "' is missing in: " << message;
    }
    return;
  }
  ADD_FAILURE() << "no error; expected one that says '" << (parts.empty() ? "" : parts.front()) << "'";
}

ShardingOptions buckets_of(int64_t bytes) {
  return ShardingOptions().bucket_bytes(bytes).first_bucket_bytes(bytes);
}

}  // namespace zerosched::testing
