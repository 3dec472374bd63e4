#pragma once

#include <c10/core/ScalarType.h>
#include <mpi.h>

#include <zerosched/communicator.h>

#include <cstdint>

namespace zerosched::detail {

/// The predefined MPI type of a dtype that MPI itself can reduce; float32 stands in for 16-bit types.
MPI_Datatype reducible_type(at::ScalarType dtype);

MPI_Op reduction_of(ReduceOp op);

/// `byte_count` bytes as one (count, type) pair of a single MPI call, whose counts are int: plain bytes up to
/// `max_count`, beyond it a derived type of blocks of max_count bytes and a rest.
class ByteSpan {
 public:
  ByteSpan(int64_t byte_count, int64_t max_count);
  ~ByteSpan();
  ByteSpan(const ByteSpan&) = delete;
  ByteSpan& operator=(const ByteSpan&) = delete;

  int count() const { return count_; }
  MPI_Datatype type() const { return type_; }

 private:
  int count_ = 0;
  MPI_Datatype type_ = MPI_BYTE;
};

}  // namespace zerosched::detail
