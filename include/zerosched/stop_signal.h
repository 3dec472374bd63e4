#pragma once

#include <zerosched/communicator.h>
#include <zerosched/exit_codes.h>
#include <zerosched/export.h>

namespace zerosched {

/// Turns SIGUSR1 and SIGTERM, with which batch systems announce the end of a job, into a question that all
/// ranks answer alike, because the signal may reach some ranks only, and each at another step:
///
///     zerosched::StopSignal stop;   // first of all: what comes earlier ends the process
///     zerosched::Session session(argc, argv);
///     ...
///     for (...) {
///       train_one_step();
///       if (stop.requested(*session.communicator())) {
///         optimizer.save_checkpoint(...);
///         return zerosched::kRequeueExitCode;
///       }
///     }
///
/// While one lives the two signals do nothing else; the handlers that were there before come back with its
/// end. At most one at a time.
class ZEROSCHED_EXPORT StopSignal {
 public:
  /// Local. Throws if there is one already.
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  /// Whether any rank has got one of the signals since construction. Collective: one all-reduce of a byte.
  bool requested(Communicator& communicator) const;
};

}  // namespace zerosched
