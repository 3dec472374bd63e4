#pragma once

#include "comm/failure/cause.h"

#include <zerosched/communicator.h>
#include <zerosched/session.h>

#include <memory>

namespace zerosched::detail {

/// What a session is part of: how to join it, and how to end it for all ranks, per transport.
class Job {
 public:
  virtual ~Job() = default;

  virtual std::shared_ptr<Communicator> communicator() const = 0;

  /// Why the session's communicator or any duplicate of it has given up; without text if none has, and in a job of one rank,
  /// of which nobody else has to be told: errors just propagate.
  virtual Cause failure() const = 0;

  /// Leaves in good order. Collective; throws if another rank fails meanwhile.
  virtual void finish() = 0;

  /// Tells the other ranks why this one gives up, and gives them a moment to hear it.
  virtual void tell(const Cause& cause) noexcept = 0;

  /// tell(), and ends all processes of the job.
  [[noreturn]] virtual void end(const Cause& cause, int exit_code) noexcept = 0;

  /// end(), but returns at once where it can, so that the exception which unwinds still gets to a handler
  /// that tells what it is. The process ends in a moment, with `exit_code`, whatever it does until then.
  virtual void end_soon(const Cause& cause, int exit_code) noexcept = 0;
};

/// Joins the job whose ranks mpirun or srun has started.
std::unique_ptr<Job> make_mpi_job(int* argc, char*** argv, const SessionOptions& options);
/// Whether the program has initialised MPI itself, for several ranks.
bool has_mpi_world();
/// A job of this process alone.
std::unique_ptr<Job> make_self_job();

}  // namespace zerosched::detail
