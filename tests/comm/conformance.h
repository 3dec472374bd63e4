#pragma once

#include <zerosched/communicator.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace zerosched::testing {

/// A communicator that conformance_test.cpp holds to what every communicator must do.
struct Backend {
  const char* name;
  std::function<std::shared_ptr<Communicator>()> make;
  /// Ranks with equal entries share a host, and are summed first; empty: all do. May be longer than there are ranks.
  std::vector<int> host_of_rank = {};
  /// Tensors that take part come from Communicator::allocate().
  bool allocates = false;
  /// Where the tensors that take part are, and how they get there and back; by default the CPU.
  at::Device device = at::kCPU;
  std::function<at::Tensor(const at::Tensor&)> to_device = [](const at::Tensor& tensor) { return tensor; };
  std::function<at::Tensor(const at::Tensor&)> to_host = [](const at::Tensor& tensor) { return tensor; };
  /// Called when a test has let everything go.
  std::function<void()> check_nothing_left = [] {};
};

/// Each program of the conformance test brings its own.
std::vector<Backend> conformance_backends();
/// Why the backend cannot be tested on this machine, or empty. The same on every rank.
std::string why_skip_conformance(const Backend& backend);

}  // namespace zerosched::testing
