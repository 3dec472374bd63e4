#pragma once

#include <c10/core/ScalarType.h>
#include <mpi.h>

#include <zerosched/communicator.h>

namespace zerosched::detail {

/// The predefined MPI type of a dtype that MPI itself can reduce; float32 stands in for 16-bit types.
MPI_Datatype reducible_type(at::ScalarType dtype);

MPI_Op reduction_of(ReduceOp op);

}  // namespace zerosched::detail
