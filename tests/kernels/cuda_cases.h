#pragma once

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/kernels.h"
#include "kernels/ranges.h"

#include <c10/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

// What the CUDA kernels are compared on with the CPU's, in the shim and on a GPU alike.
namespace zerosched::kernels::testing {

struct Variant {
  const char* name;
  Rule rule;
  StepScalars scalars;

  int state_tensors() const { return state_count(rule); }
};

/// Every kernel of the family, some in a box as well.
inline std::vector<Variant> all_rules() {
  StepScalars s;
  s.grad_scale = 0.25, s.lr = 2.5e-2, s.beta1 = 0.9, s.beta2 = 0.99, s.bias_correction1 = 0.3;
  s.bias_correction2 = 0.05, s.eps = 1e-8, s.y_weight_before = 0.1, s.c = 0.2, s.y_weight = 0.85;
  StepScalars decays = s;
  decays.weight_decay = 0.1;
  StepScalars not_adaptive = decays;
  not_adaptive.adaptive = false;
  StepScalars nesterov = decays;
  nesterov.nesterov = true;
  StepScalars decays_at_z = s;
  decays_at_z.z_shrink = 0.9975;
  const auto in_box = [](StepScalars scalars) {
    scalars.clamp_low = -0.8, scalars.clamp_high = 0.3;  // of iterates that are normal about 0
    return scalars;
  };
  return {{"AdamW Schedule-Free", Rule::adamw_schedule_free, s},
      {"AdamW Schedule-Free with weight decay", Rule::adamw_schedule_free, decays},
      {"AdamW Schedule-Free not adaptive", Rule::adamw_schedule_free, not_adaptive},
      {"AdamW Schedule-Free with momentum", Rule::adamw_schedule_free_momentum, decays},
      {"AdamW Schedule-Free with momentum, decay at z", Rule::adamw_schedule_free_momentum, decays_at_z},
      {"SGD Schedule-Free", Rule::sgd_schedule_free, decays}, {"AdamW", Rule::adamw, decays},
      {"SGD", Rule::sgd, decays}, {"SGD with Nesterov", Rule::sgd, nesterov},
      {"AdamW Schedule-Free in a box", Rule::adamw_schedule_free, in_box(decays)},
      {"AdamW Schedule-Free with momentum in a box", Rule::adamw_schedule_free_momentum, in_box(decays)},
      {"SGD Schedule-Free in a box", Rule::sgd_schedule_free, in_box(decays)},
      {"AdamW in a box", Rule::adamw, in_box(decays)}, {"SGD in a box", Rule::sgd, in_box(nesterov)}};
}

/// A shard as the engine lays it out: every span starts on 128 bytes.
struct Shard {
  Dtypes dtypes;
  std::vector<int64_t> begins;
  std::vector<int64_t> sizes;
  std::vector<bool> used;
  int64_t numel = 0;  ///< the last span ends it
  Array y, g, flags;
  std::vector<Array> state;

  Shard(Dtypes types, const std::vector<int64_t>& span_sizes, bool some_unused, uint32_t seed)
      : dtypes(types),
        sizes(span_sizes),
        numel(place(span_sizes)),
        y(types.param, numel),
        g(types.grad, numel),
        flags(types.grad, static_cast<int64_t>(span_sizes.size())) {
    std::mt19937 generator(seed);
    fill_normal(y, generator, 1.0);
    fill_normal(g, generator, 0.1);
    for (int i = 0; i < 4; ++i) {
      state.emplace_back(state_dtype(types.param), numel);
      fill_normal(state.back(), generator, i >= 2 ? 0.1 : 1.0);
    }
    for (int64_t i = 0; i < numel; ++i) {
      state[2].set(i, state[2][i] * state[2][i]);
      state[3].set(i, state[3][i] * state[3][i]);
    }
    for (size_t i = 0; i < sizes.size(); ++i) {
      used.push_back(!some_unused || i % 3 != 1);
      flags.set(static_cast<int64_t>(i), used.back() ? 2 : 0);
    }
  }

  /// One step by the CPU's kernels; whether they found its state finite.
  bool update_on_cpu(Rule rule, const StepScalars& scalars) {
    bool finite = true;
    for (size_t i = 0; i < sizes.size(); ++i) {
      if (!used[i]) continue;
      UpdateRange range{dtypes.param, dtypes.grad, at(y, begins[i]), at(g, begins[i]), {}, sizes[i]};
      for (size_t k = 0; k < state.size(); ++k) range.state[k] = at(state[k], begins[i]);
      finite = update(rule, range, scalars) && finite;
    }
    return finite;
  }

  /// (*sum + s0) + s1 + ... by the CPU's kernel.
  double sum_of_squares_on_cpu(double sum) {
    for (size_t i = 0; i < sizes.size(); ++i) {
      if (used[i]) sum += sum_of_squares(dtypes.grad, at(g, begins[i]), sizes[i]);
    }
    return sum;
  }

  double sum_of_powers_on_cpu(double sum, double p) {
    for (size_t i = 0; i < sizes.size(); ++i) {
      if (used[i]) sum += sum_of_powers(dtypes.grad, at(g, begins[i]), sizes[i], p);
    }
    return sum;
  }
  /// Of what the rules call z and x.
  double inner_product_on_cpu(double sum, double weight) {
    for (size_t i = 0; i < sizes.size(); ++i) {
      if (!used[i]) continue;
      sum += inner_product(
          dtypes.grad, at(g, begins[i]), at(state[0], begins[i]), at(state[1], begins[i]), sizes[i], weight);
    }
    return sum;
  }
  double max_abs_on_cpu() {
    double largest = 0;
    for (size_t i = 0; i < sizes.size(); ++i) {
      if (used[i]) largest = std::max(largest, max_abs(dtypes.grad, at(g, begins[i]), sizes[i]));
    }
    return largest;
  }
  void clamp_on_cpu(double limit) {
    for (size_t i = 0; i < sizes.size(); ++i) {
      if (used[i]) clamp_gradient(dtypes.grad, at(g, begins[i]), sizes[i], limit);
    }
  }

  static void* at(Array& array, int64_t index) {
    return static_cast<char*>(array.data()) + index * static_cast<int64_t>(c10::elementSize(array.dtype()));
  }

 private:
  int64_t place(const std::vector<int64_t>& span_sizes) {
    int64_t end = 0;
    for (const int64_t size : span_sizes) {
      begins.push_back((end + 63) / 64 * 64);
      end = begins.back() + size;
    }
    return end;
  }
};

/// Around the width of every pack, and of a tile of 4096 and of 16384; empty ones too.
inline const std::vector<int64_t>& span_sizes() {
  static const std::vector<int64_t> values = {
      0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 513, 4095, 4096, 4097, 8200, 16384, 0, 77};
  return values;
}

}  // namespace zerosched::kernels::testing
