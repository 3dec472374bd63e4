#pragma once

// Exit codes that mean something to whoever starts a job; those of programs themselves are passed on.
namespace zerosched {

/// Of a process that ends its job because of an error, its own or another rank's: Session.
inline constexpr int kFailureExitCode = 70;
/// Of a job that has saved a checkpoint and wants to be started again: StopSignal, launch/slurm.
inline constexpr int kRequeueExitCode = 75;
/// launch/run's, of a job that has lost a host. launch/slurm starts it again, too.
inline constexpr int kLostHostExitCode = 69;

}  // namespace zerosched
