#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace zerosched::testing {

/// Schedule-Free AdamW of one parameter group (arXiv 2405.15682, as in the package schedulefree), written
/// down line by line in double: no shards, no buckets, no fusion. What the engine is compared with.
class Reference {
 public:
  struct Options {
    double lr = 0.0025, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
    double r = 0, weight_lr_power = 2;
    int64_t warmup_steps = 0;
  };

  explicit Reference(const std::vector<std::pair<std::string, at::Tensor>>& parameters)
      : Reference(parameters, Options()) {}
  Reference(const std::vector<std::pair<std::string, at::Tensor>>& parameters, Options options)
      : options_(options) {
    for (const auto& [name, parameter] : parameters) {
      const at::Tensor start = parameter.detach().to(at::kDouble).contiguous().clone();
      state_[name] = {start.clone(), start.clone(), at::zeros_like(start), start.clone()};
    }
  }

  /// An undefined or missing gradient leaves its parameter alone.
  void step(const std::map<std::string, at::Tensor>& gradients) {
    const double t = static_cast<double>(k_ + 1);
    const double sched =
        options_.warmup_steps > 0 ? std::min(1.0, t / static_cast<double>(options_.warmup_steps)) : 1.0;
    const double lr = options_.lr * sched;
    lr_max_ = std::max(lr_max_, lr);
    const double weight = std::pow(t, options_.r) * std::pow(lr_max_, options_.weight_lr_power);
    weight_sum_ += weight;
    const double c = weight_sum_ == 0 ? 0 : weight / weight_sum_;
    const double correction = 1 - std::pow(options_.beta2, t);
    for (const auto& [name, gradient] : gradients) {
      if (!gradient.defined()) continue;
      auto& [z, x, v, y] = state_.at(name);
      const at::Tensor g = gradient.detach().to(at::kDouble);
      v = options_.beta2 * v + (1 - options_.beta2) * g * g;
      const at::Tensor u = g / ((v / correction).sqrt() + options_.eps) + options_.weight_decay * y;
      z = z - lr * u;
      x = (1 - c) * x + c * z;
      y = options_.beta1 * x + (1 - options_.beta1) * z;
    }
    ++k_;
  }

  /// What ShardedOptimizer::reset_from_parameters() promises.
  void reset(const std::string& name, const at::Tensor& value) {
    State& state = state_.at(name);
    state.z = state.x = state.y = value.detach().to(at::kDouble).clone();
    weight_sum_ = 0;
  }

  void lr(double value) { options_.lr = value; }
  at::Tensor z(const std::string& name) const { return state_.at(name).z; }
  at::Tensor x(const std::string& name) const { return state_.at(name).x; }
  at::Tensor v(const std::string& name) const { return state_.at(name).v; }
  at::Tensor y(const std::string& name) const { return state_.at(name).y; }
  at::Tensor get(const std::string& which, const std::string& name) const {
    return which == "z" ? z(name) : which == "x" ? x(name) : which == "v" ? v(name) : y(name);
  }

 private:
  struct State {
    at::Tensor z, x, v, y;
  };
  Options options_;
  std::map<std::string, State> state_;
  int64_t k_ = 0;
  double weight_sum_ = 0, lr_max_ = -1;
};

}  // namespace zerosched::testing
