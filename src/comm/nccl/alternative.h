#pragma once

namespace zerosched::detail {

/// How errors that only NCCL has end: what works on the same machine without it.
inline constexpr const char* kHostStagedAlternative =
    "the MPI communicator moves CUDA tensors through host memory (SessionOptions().backend(\"mpi\"), --comm "
    "mpi)";

}  // namespace zerosched::detail
