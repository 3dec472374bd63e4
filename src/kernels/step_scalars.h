#pragma once

#include <cstddef>
#include <limits>

namespace zerosched::kernels {

/// The arithmetic of a step, one header each in rules/.
enum class Rule { adamw_schedule_free, adamw_schedule_free_momentum, sgd_schedule_free, adamw, sgd };

inline constexpr size_t kMaxStateTensors = 4;

/// The names of a rule's state tensors, a letter each, as in arXiv 2405.15682. z and x are iterates and start at the
/// parameters; for adamw and sgd x is the parameters themselves in the state's precision.
constexpr const char* state_of(Rule rule) {
  switch (rule) {
    case Rule::adamw_schedule_free:
      return "zxv";
    case Rule::adamw_schedule_free_momentum:
      return "zxmv";
    case Rule::sgd_schedule_free:
      return "zx";
    case Rule::adamw:
      return "xmv";
    case Rule::sgd:
      return "xm";
  }
  return "";
}

constexpr int state_count(Rule rule) {
  int count = 0;
  for (const char* name = state_of(rule); *name != 0; ++name) ++count;
  return count;
}

/// The scalars of one step of one parameter group, computed on the host in double. Plain data, so that a GPU
/// kernel can read the same struct from device memory. A rule reads those it needs.
struct StepScalars {
  double grad_scale = 1;        ///< 1/world size / loss scale * clip, applied to the summed gradient
  double lr = 0;                ///< lr_k, warmup included
  double beta1 = 0;             ///< decay of m
  double beta2 = 0;             ///< decay of v
  double bias_correction1 = 1;  ///< what m is divided by
  double bias_correction2 = 1;  ///< what v is divided by
  double eps = 0;
  double weight_decay = 0;
  double z_shrink = 1;  ///< adamw_schedule_free_momentum: what z is multiplied with, for weight decay at z
  double y_weight_before = 0;  ///< 1 - beta1 of the step that made the current y: y = lerp(x, z, this)
  double c = 0;                ///< weight of z in the average: x = lerp(x, z, c)
  double y_weight = 0;         ///< 1 - beta1 now: y = lerp(x, z, this)
  /// The iterate after its update, z before it is averaged or else x, is kept in [clamp_low, clamp_high]. Where 0
  /// is not between them, padding becomes the bound that is nearer.
  double clamp_low = -std::numeric_limits<double>::infinity();
  double clamp_high = std::numeric_limits<double>::infinity();
  bool adaptive = true;   ///< adamw_schedule_free: divide by the root of v
  bool nesterov = false;  ///< sgd
};

}  // namespace zerosched::kernels
