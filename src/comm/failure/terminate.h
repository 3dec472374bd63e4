#pragma once

#include <string>

namespace zerosched::detail {

/// Ends the job because of an exception that nobody caught; `what`: what it says. Does not return.
using EndJob = void (*)(const std::string& what);

/// What std::terminate() does from now on; null: what it did before. A session's comes before that of communicators over the
/// host's own MPI. In a child that fork() has made it does what it did before.
void set_session_end(EndJob end);
/// For good, and only where the program has no terminate handler of its own.
void set_communicator_end(EndJob end);

/// Has std::terminate() wait for the end of the process, which another thread is about to bring.
void await_end_on_terminate();

}  // namespace zerosched::detail
