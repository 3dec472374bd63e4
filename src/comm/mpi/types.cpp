#include "comm/mpi/types.h"

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
      TORCH_CHECK(false, "mpi: no reduction for ", dtype);
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

ByteSpan::ByteSpan(int64_t byte_count, int64_t max_count) {
  if (byte_count <= max_count) {
    count_ = static_cast<int>(byte_count);
    return;
  }
  const int64_t blocks = byte_count / max_count;
  const int64_t rest = byte_count % max_count;
  MPI_Datatype block = MPI_DATATYPE_NULL;
  MPI_Datatype whole_blocks = MPI_DATATYPE_NULL;
  ZEROSCHED_MPI_CALL(MPI_Type_contiguous, static_cast<int>(max_count), MPI_BYTE, &block);
  ZEROSCHED_MPI_CALL(MPI_Type_contiguous, static_cast<int>(blocks), block, &whole_blocks);
  const int lengths[2] = {1, static_cast<int>(rest)};
  const MPI_Aint offsets[2] = {0, static_cast<MPI_Aint>(blocks * max_count)};
  const MPI_Datatype parts[2] = {whole_blocks, MPI_BYTE};
  ZEROSCHED_MPI_CALL(MPI_Type_create_struct, rest > 0 ? 2 : 1, lengths, offsets, parts, &type_);
  ZEROSCHED_MPI_CALL(MPI_Type_commit, &type_);
  ZEROSCHED_MPI_CALL(MPI_Type_free, &whole_blocks);
  ZEROSCHED_MPI_CALL(MPI_Type_free, &block);
  count_ = 1;
}

ByteSpan::~ByteSpan() {
  if (type_ != MPI_BYTE) MPI_Type_free(&type_);
}

}  // namespace zerosched::detail
