#pragma once

#include "kernels/math.h"

namespace zerosched::kernels {

/// <g, z - x>, which is how much of the loss at y lies between x and z, to first order: takes one element into a sum.
/// In double, added up in the order of summation.h.
ZEROSCHED_ELEMENT double with_product(double sum, double g, double z, double x) {
  return fused_multiply_add(g, z - x, sum);
}

}  // namespace zerosched::kernels
