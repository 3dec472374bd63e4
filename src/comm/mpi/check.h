#pragma once

#include "base/check.h"

#include <mpi.h>

#include <string>

namespace zerosched::detail {

inline std::string mpi_error_text(int code) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) return "error " + std::to_string(code);
  return std::string(text, static_cast<size_t>(length));
}

}  // namespace zerosched::detail

/// Evaluates an MPI call and throws with the call's name and MPI's own text if it failed. Only useful where
/// the communicator's error handler is MPI_ERRORS_RETURN: MPI's default ends the job before returning.
#define ZEROSCHED_MPI_CALL(function, ...)                                                \
  do {                                                                                   \
    const int zerosched_mpi_code = function(__VA_ARGS__);                                \
    ZEROSCHED_CHECK(zerosched_mpi_code == MPI_SUCCESS,                                   \
        #function " failed: ", ::zerosched::detail::mpi_error_text(zerosched_mpi_code)); \
  } while (false)
