#pragma once

#include "optim/algorithm.h"

#include <cstdint>

namespace zerosched::detail {

/// The step after `state` of an algorithm that averages as arXiv 2405.15682, section 2. Once prepared.scalars.lr is the
/// step's: its scalars of averaging, and the group's state after it. c is `c_factor` times the step's share of all weights,
/// at most 1.
void average(PreparedStep& prepared, const GroupState& state, double beta1, double r, double weight_lr_power,
    double c_factor = 1);

/// Both decays and the corrections of their means' bias by a step.
void use_decays(kernels::StepScalars& scalars, const GroupState& state, double beta1, double beta2);

/// (k+1)/warmup_steps, at most 1.
double warmup(const GroupState& state, int64_t warmup_steps);

}  // namespace zerosched::detail
