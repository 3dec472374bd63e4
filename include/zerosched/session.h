#pragma once

#include <zerosched/communicator.h>
#include <zerosched/exit_codes.h>
#include <zerosched/export.h>

#include <torch/arg.h>

#include <memory>
#include <optional>
#include <string>

namespace zerosched {

/// What a Session does once the job has failed.
enum class OnFailure {
  /// Ends the job, with all of its processes, with exit code 70.
  end,
  /// Tells the other ranks, whose next call into the library throws, and leaves it to exceptions: for programs that go on
  /// without the library, or end in their own way.
  raise,
};

/// How a process takes part in its job; the same on every rank.
struct ZEROSCHED_EXPORT SessionOptions {
  /// Where this rank's model lives: at::kCPU or a CUDA device, at::kCUDA being the one of the rank's position
  /// on its node. By default that GPU, or the CPU where no rank sees one. A GPU becomes the current device of the
  /// thread that constructs the session: at::kCUDA without an index is the rank's own from then on.
  TORCH_ARG(std::optional<at::Device>, device) = std::nullopt;
  /// "self", "mpi", "nccl" or "auto". Under mpirun or srun --mpi=pmix auto is nccl if every rank has a GPU of
  /// its own and mpi if ranks share GPUs (their tensors travel through host memory, and a warning says so) or
  /// are on the CPU; otherwise it is self.
  TORCH_ARG(std::string, backend) = "auto";
  /// Seconds after which a collective that does not end is given up, on every rank, and so is joining the job:
  /// no rank may start so much later than the first. Must be positive.
  TORCH_ARG(double, timeout) = 600;
  /// With nccl: seconds that a GPU has to end what is in flight once the job has failed. Then its process ends with
  /// exit code 70 and says why, as nobody could wake up a thread that waits for the GPU. Must be positive.
  TORCH_ARG(double, abort_timeout) = 30;
  /// With nccl: whether parameters live in memory that all GPUs of a node reach, for which NCCL has faster kernels
  /// over NVLink. These cannot be aborted, so a job that has lost a rank takes abort_timeout() longer to end, and its
  /// other ranks end without an exception. NCCL_WIN_ENABLE=0 in the environment makes NCCL take its other kernels
  /// without a change to the program.
  TORCH_ARG(bool, symmetric_memory) = true;
  /// With mpi: false sums over the ranks of each host first, so that each byte crosses the network once per host; true
  /// has every rank exchange with every other, so that sums depend on the number of ranks alone and a job keeps its bits
  /// when its ranks move to other hosts. See mpi_communicator(). The same on every rank.
  TORCH_ARG(bool, flat_collectives) = false;
  /// With OnFailure::raise the session never ends the process. It brings no terminate handler; what would end the job is
  /// thrown, by the constructor and abort() too, or warned of where the session's own end finds it; and a wait within MPI
  /// or NCCL that nothing can give up lasts, and is warned of when its time is over. MPI, if the session has initialised it,
  /// is not finalised after a failure, which other ranks could not take part in; such programs bring their own.
  TORCH_ARG(OnFailure, on_failure) = OnFailure::end;
};

/// This process's part in a job: joins mpirun or Slurm, owns the communicator, ends the job well or badly.
///
/// MPI is initialised only if nobody did, and finalised, in the destructor, only if the session initialised
/// it. A session that is destroyed while an exception unwinds, or whose communicator has given up, tells the
/// other ranks and ends the whole job with exit code 70 instead of waiting for ranks that will not come; an
/// exception that nobody catches does the same. An exception that every rank catches within the session, of a checkpoint
/// that cannot be loaded or an optimizer that all give up alike, is no failure of the job; nor is any in a job of one rank,
/// whose handlers decide its exit code. At most one session may exist at a time.
///
/// With several ranks, one warning says if threads outnumber the cores that their ranks may use, with the remedy.
///
/// A child that fork() makes of the process has no part in the job: calls there throw, and destructors do nothing. On CPUs
/// it shares the memory of parameters with the ranks of its host: what it is to keep or change, clone before.
class ZEROSCHED_EXPORT Session {
 public:
  /// Collective over the ranks of the job. `argc` and `argv` are handed to MPI and not changed otherwise.
  /// Throws an Error on every rank if the options do not fit the machine of any, or if the launcher's
  /// processes are not MPI's; MPI is finalised then if it was initialised here, so there can be no second
  /// attempt. Where a launcher has started several processes in a way that MPI cannot connect, the error says what of it
  /// was found in the environment, and how to start them. Where ranks do not come within the timeout, or fail while they join, there is no error to be
  /// handled: the job ends with exit code 70, and stderr says what was waited for, and which ranks are missing
  /// where that can be known (not before MPI_Init has ended). OnFailure::raise throws that where it can.
  Session(int& argc, char**& argv, const SessionOptions& options = {});
  /// The same without arguments for MPI.
  explicit Session(const SessionOptions& options = {});
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  /// Of all ranks of the job, over the backend that the options ask for.
  std::shared_ptr<Communicator> communicator() const;
  /// Where the model of this rank belongs.
  at::Device device() const;
  /// Of this process, from 0.
  int rank() const;
  /// How many ranks the job has.
  int world_size() const;
  /// Position of this process among those on its node, from 0.
  int local_rank() const;

  /// Tells every rank to stop with `message` and ends the job with `exit_code`. Does not return; with OnFailure::raise it
  /// throws instead.
  /// Any rank may call it, alone.
  [[noreturn]] void abort(const std::string& message, int exit_code = kFailureExitCode);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace zerosched
