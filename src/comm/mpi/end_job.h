#pragma once

namespace zerosched::detail {

/// Ends all processes of the job with `exit_code`, or this one, if MPI is not there to do so.
[[noreturn]] void end_mpi_job(int exit_code) noexcept;

/// Has an exception that nobody catches end the job with exit code 70 and a line on stderr, after the other ranks were told:
/// for programs that brought MPI themselves. Not where the program has a terminate handler of its own.
void end_mpi_job_on_terminate();

}  // namespace zerosched::detail
