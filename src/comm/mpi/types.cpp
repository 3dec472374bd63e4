#include "comm/mpi/types.h"

#include "base/check.h"
#include "comm/mpi/check.h"

namespace zerosched::detail {

MPI_Datatype reducible_type(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
    case at::kBFloat16:
    case at::kHalf:
      return MPI_FLOAT;
    case at::kDouble:
      return MPI_DOUBLE;
    case at::kInt:
      return MPI_INT32_T;
    case at::kLong:
      return MPI_INT64_T;
    case at::kByte:
      return MPI_UINT8_T;
    default:
      ZEROSCHED_CHECK(false, "mpi: no reduction for ", dtype);
  }
}

MPI_Op reduction_of(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum:
      return MPI_SUM;
    case ReduceOp::max:
      return MPI_MAX;
    case ReduceOp::min:
      return MPI_MIN;
  }
  return MPI_OP_NULL;
}

}  // namespace zerosched::detail
