#pragma once

#include "base/check.h"

#include <zerosched/communicator.h>

#include <nccl.h>

namespace zerosched::detail {

/// The type in which NCCL sums or compares; Communicator has refused what is not listed.
inline ncclDataType_t nccl_reducible_type(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return ncclFloat32;
    case at::kDouble:
      return ncclFloat64;
    case at::kBFloat16:
      return ncclBfloat16;
    case at::kHalf:
      return ncclFloat16;
    case at::kInt:
      return ncclInt32;
    case at::kLong:
      return ncclInt64;
    case at::kByte:
      return ncclUint8;
    default:
      ZEROSCHED_CHECK(false, "nccl: no reduction for ", dtype);
  }
}

inline ncclRedOp_t nccl_reduction(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum:
      return ncclSum;
    case ReduceOp::max:
      return ncclMax;
    case ReduceOp::min:
      return ncclMin;
  }
  return ncclSum;
}

}  // namespace zerosched::detail
