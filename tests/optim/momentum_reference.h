#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

// The relatives of Schedule-Free AdamW whose z moves along a mean of the gradients, each written down line by line in
// double, of one parameter group: no shards, no buckets, no fusion. An undefined or missing gradient leaves its
// parameter alone.
namespace zerosched::testing {

/// z, x, m, v and y of every parameter.
class MomentumState {
 public:
  struct Tensors {
    at::Tensor z, x, m, v, y;
  };

  explicit MomentumState(const std::vector<std::pair<std::string, at::Tensor>>& parameters) {
    for (const auto& [name, parameter] : parameters) {
      const at::Tensor start = parameter.detach().to(at::kDouble).contiguous().clone();
      of[name] = {start.clone(), start.clone(), at::zeros_like(start), at::zeros_like(start), start.clone()};
    }
  }

  at::Tensor get(const std::string& which, const std::string& name) const {
    const Tensors& t = of.at(name);
    return which == "z" ? t.z : which == "x" ? t.x : which == "m" ? t.m : which == "v" ? t.v : t.y;
  }

  std::map<std::string, Tensors> of;
};

/// Generalized primal averaging over AdamW, arXiv 2512.17131.
class GPAReference {
 public:
  struct Options {
    double lr = 1e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0, mu_y = 0.7, mu_x = 0.9967;
    int64_t warmup_steps = 0;
  };

  GPAReference(const std::vector<std::pair<std::string, at::Tensor>>& parameters, Options options)
      : state(parameters), options_(options) {}

  void step(const std::map<std::string, at::Tensor>& gradients) {
    const Options& o = options_;
    const double t = static_cast<double>(++k_);
    const double lr =
        o.warmup_steps > 0 ? o.lr * std::min(1.0, t / static_cast<double>(o.warmup_steps)) : o.lr;
    for (const auto& [name, gradient] : gradients) {
      if (!gradient.defined()) continue;
      auto& [z, x, m, v, y] = state.of.at(name);
      const at::Tensor g = gradient.detach().to(at::kDouble);
      m = o.beta1 * m + (1 - o.beta1) * g;
      v = o.beta2 * v + (1 - o.beta2) * g * g;
      const at::Tensor m_hat = m / (1 - std::pow(o.beta1, t)), v_hat = v / (1 - std::pow(o.beta2, t));
      z = (1 - lr * o.weight_decay) * z - lr * m_hat / (v_hat.sqrt() + o.eps);
      x = o.mu_x * x + (1 - o.mu_x) * z;
      y = o.mu_y * x + (1 - o.mu_y) * z;
    }
  }

  MomentumState state;

 private:
  Options options_;
  int64_t k_ = 0;
};

/// Schedule-Free AdamW with the weight of refined Schedule-Free (arXiv 2507.09846) in its average, and with inner
/// momentum.
class InnerMomentumReference {
 public:
  struct Options {
    double lr = 0.0025, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
    double refinement = 0, inner_momentum = 0;
    int64_t warmup_steps = 0;
  };

  InnerMomentumReference(const std::vector<std::pair<std::string, at::Tensor>>& parameters, Options options)
      : state(parameters), options_(options) {}

  void step(const std::map<std::string, at::Tensor>& gradients) {
    const Options& o = options_;
    const double t = static_cast<double>(++k_), b = o.inner_momentum;
    const double lr =
        o.warmup_steps > 0 ? o.lr * std::min(1.0, t / static_cast<double>(o.warmup_steps)) : o.lr;
    lr_max_ = std::max(lr_max_, lr);
    weight_sum_ += lr_max_ * lr_max_;
    double c = lr_max_ * lr_max_ / weight_sum_;
    if (o.refinement > 0) c = std::min(1.0, (1 - o.beta1) * o.refinement * c);
    for (const auto& [name, gradient] : gradients) {
      if (!gradient.defined()) continue;
      auto& [z, x, m, v, y] = state.of.at(name);
      const at::Tensor g = gradient.detach().to(at::kDouble);
      m = b * m + (1 - b) * g;
      v = o.beta2 * v + (1 - o.beta2) * g * g;
      const at::Tensor m_hat = m / (1 - std::pow(b, t)), v_hat = v / (1 - std::pow(o.beta2, t));
      z = z - lr * (m_hat / (v_hat.sqrt() + o.eps) + o.weight_decay * y);
      x = (1 - c) * x + c * z;
      y = o.beta1 * x + (1 - o.beta1) * z;
    }
  }

  MomentumState state;

 private:
  Options options_;
  int64_t k_ = 0;
  double weight_sum_ = 0, lr_max_ = -1;
};

/// ScheduleFree+, arXiv 2605.19095.
class PlusReference {
 public:
  struct Options {
    double lr = 1, beta1 = 0.9, beta2 = 0.95, sf_beta1 = 0.9, sf_beta1_max = 0.965, eps = 1e-8;
    double weight_decay = 0, r = 0, weight_lr_power = 2, polyak_beta = 0;
    int64_t anneal_steps = 0, c_warmup = 0;
  };

  PlusReference(const std::vector<std::pair<std::string, at::Tensor>>& parameters, Options options)
      : state(parameters), options_(options), lr_max_(options.eps) {}

  void step(const std::map<std::string, at::Tensor>& gradients, double loss) {
    const Options& o = options_;
    double b = o.sf_beta1;
    if (o.anneal_steps > 0) {
      const double p = std::min(1.0, static_cast<double>(k_) / static_cast<double>(o.anneal_steps));
      b = 1 - std::pow(1 - o.sf_beta1, 1 - p) * std::pow(1 - o.sf_beta1_max, p);
    }
    const double t = static_cast<double>(k_ + 1);
    double l1 = 0, ip = 0;
    for (const auto& [name, gradient] : gradients) {
      if (!gradient.defined()) continue;
      const auto& [z, x, m, v, y] = state.of.at(name);
      const at::Tensor g = gradient.detach().to(at::kDouble);
      l1 += g.abs().sum().item<double>();
      ip += b * (g * (z - x)).sum().item<double>();
    }
    e_ = o.polyak_beta * e_ + (1 - o.polyak_beta) * l1 * std::sqrt(M_PI / 2);
    const double e_hat = e_ / (1 - std::pow(o.polyak_beta, t));
    last_step = std::max(o.lr, o.eps) * std::max(0.0, loss + ip) / e_hat;
    lr_max_ = std::max(lr_max_, last_step);
    double c = 1;
    if (k_ >= o.c_warmup) {
      const double weight = std::pow(t, o.r) * std::pow(lr_max_, o.weight_lr_power);
      weight_sum_ += weight;
      c = weight / weight_sum_;
    }
    for (const auto& [name, gradient] : gradients) {
      if (!gradient.defined()) continue;
      auto& [z, x, m, v, y] = state.of.at(name);
      const at::Tensor g = gradient.detach().to(at::kDouble);
      z = z - last_step * last_step * o.weight_decay * y;
      m = o.beta1 * m + (1 - o.beta1) * g;
      v = o.beta2 * v + (1 - o.beta2) * g * g;
      const at::Tensor m_hat = m / (1 - std::pow(o.beta1, t)), v_hat = v / (1 - std::pow(o.beta2, t));
      z = z - last_step * m_hat / (v_hat.sqrt() + o.eps);
      x = (1 - c) * x + c * z;
      y = b * x + (1 - b) * z;
    }
    ++k_;
  }

  MomentumState state;
  double last_step = 0;

 private:
  Options options_;
  int64_t k_ = 0;
  double weight_sum_ = 0, lr_max_, e_ = 0;
};

}  // namespace zerosched::testing
