// One rank of the jobs that session_test.py starts; the first argument says what it is to do.
#include <zerosched/mpi_communicator.h>
#include <zerosched/session.h>

#include <ATen/ops/full.h>
#include <mpi.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>

#include <sys/wait.h>
#include <unistd.h>

namespace {

using zerosched::Session;
using zerosched::SessionOptions;

void sleep_seconds(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

void say(const std::string& text) {
  const std::string line = text + "\n";
  if (::write(STDOUT_FILENO, line.data(), line.size()) < 0) std::abort();
}

void all_reduce(Session& session) {
  auto value = at::full({1}, 1.0);
  session.communicator()->all_reduce(value, zerosched::ReduceOp::sum, {"loss"})->wait();
  say("sum " + std::to_string(value.item().toInt()) + " of " + std::to_string(session.world_size()));
}

void report(const char* what) { say(std::string("caught: ") + what); }

std::string first_line(const std::exception& error) {
  const std::string text = error.what();
  return text.substr(0, text.find('\n'));
}

// What Open MPI's launcher says, or MPICH's.
int launched(const char* by_open_mpi, const char* by_mpich, int otherwise) {
  const char* said = std::getenv(by_open_mpi);
  if (said == nullptr) said = std::getenv(by_mpich);
  return said == nullptr ? otherwise : std::atoi(said);
}

int launched_rank() { return launched("OMPI_COMM_WORLD_RANK", "PMI_RANK", 0); }

// A handler like a trainer's, which must not be reached where ranks are missing.
void join() {
  try {
    Session session(SessionOptions().timeout(2));
    all_reduce(session);
  } catch (const std::exception& error) {
    report(first_line(error).c_str());
  }
}

bool stops_in_split = false, stops_in_duplicate = false;

void initialize_own_mpi(int argc, char** argv) {
  int provided = MPI_THREAD_SINGLE;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
}

// What a host that goes on without the library does: catches, and ends in its own way.
int embedded(int argc, char** argv, bool unwinds) {
  initialize_own_mpi(argc, argv);
  int rank = 0;
  int size = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  const auto options = SessionOptions().on_failure(zerosched::OnFailure::raise);
  const auto work = [&](Session& session) {
    all_reduce(session);
    if (rank == size - 1) throw std::runtime_error("the mesh is broken");
    all_reduce(session);
  };
  const auto guarded = [&](const auto& function) {
    try {
      function();
    } catch (const std::exception& error) {
      report(first_line(error).c_str());
    }
  };
  if (unwinds) {
    guarded([&] {
      Session session(options);
      work(session);
    });
  } else {
    Session session(options);
    guarded([&] { work(session); });
    if (rank == size - 1) guarded([&] { session.abort("no more of this"); });
    guarded([&] { session.communicator()->check(); });
  }
  MPI_Barrier(MPI_COMM_WORLD);
  say("the host goes on");
  MPI_Finalize();
  return 0;
}

// The last rank forks a child that ends in one of the ways there are; all ranks go on meanwhile.
int forked(const std::string& how, int argc, char** argv) {
  Session session(argc, argv, SessionOptions().timeout(5));
  const auto duplicate = session.communicator()->duplicate();
  all_reduce(session);
  pid_t child = -1;
  if (session.rank() == session.world_size() - 1) {
    child = fork();
    if (child == 0) {
      try {
        if (how == "abort") session.abort("a child's own");
        duplicate->barrier()->wait();
      } catch (const std::exception& error) {
        report(first_line(error).c_str());
      }
      if (how == "exit") std::exit(0);
      if (how == "throw") throw std::runtime_error("a child's own");
      return 0;  // as from main(): with the session's destructor
    }
  }
  all_reduce(session);
  if (child > 0) {
    int status = 0;
    waitpid(child, &status, 0);
    say(WIFSIGNALED(status) ? "child ended by signal " + std::to_string(WTERMSIG(status))
                            : "child ended with " + std::to_string(WEXITSTATUS(status)));
  }
  all_reduce(session);
  return 0;
}

int run(const std::string& mode, int argc, char** argv) {
  const int last = launched("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", 1) - 1;
  if (mode == "all_reduce") {
    Session session(argc, argv);
    all_reduce(session);
  } else if (mode == "self") {
    Session session(argc, argv, SessionOptions().backend("self"));
    all_reduce(session);
  } else if (mode == "two_sessions") {
    Session session(argc, argv);
    try {
      Session second;
    } catch (const std::exception& error) {
      report(first_line(error).c_str());
    }
    all_reduce(session);
  } else if (mode == "bad_options") {
    for (const auto& options : {SessionOptions().backend("gloo"), SessionOptions().timeout(0),
             SessionOptions().abort_timeout(-1), SessionOptions().device(at::kMeta)}) {
      try {
        Session session(argc, argv, options);
      } catch (const std::exception& error) {
        report(first_line(error).c_str());
      }
    }
    Session session(argc, argv);
    all_reduce(session);
  } else if (mode == "nccl" || mode == "cuda") {
    const auto options =
        mode == "nccl" ? SessionOptions().backend("nccl") : SessionOptions().device(at::Device(at::kCUDA, 0));
    try {
      Session session(argc, argv, options);
      all_reduce(session);
    } catch (const std::exception& error) {
      report(first_line(error).c_str());
    }
  } else if (mode == "uncaught") {
    Session session(argc, argv);
    all_reduce(session);
    if (session.rank() == last) throw std::runtime_error("no such file: data.bin");
    all_reduce(session);
  } else if (mode == "unwinding" || mode == "rethrown") {
    // The exception leaves the scope of the session and is told by a handler outside, which ends the program or passes
    // it on.
    try {
      Session session(argc, argv);
      if (session.rank() == last) throw std::runtime_error("the model is broken");
      all_reduce(session);
    } catch (const std::exception& error) {
      report(first_line(error).c_str());
      if (mode == "rethrown") throw;
      return 1;
    }
  } else if (mode == "raise" || mode == "raise_unwinding") {
    return embedded(argc, argv, mode == "raise_unwinding");
  } else if (mode == "own_mpi") {
    initialize_own_mpi(argc, argv);
    const auto communicator = zerosched::mpi_communicator(MPI_COMM_WORLD);
    communicator->barrier()->wait();
    if (communicator->rank() == last) throw std::runtime_error("no such file: data.bin");
    communicator->barrier()->wait();
  } else if (mode == "own_mpi_and_session") {
    initialize_own_mpi(argc, argv);
    Session session;
    all_reduce(session);
    if (session.rank() == last) throw std::runtime_error("no such file: data.bin");
    all_reduce(session);
  } else if (mode == "finalize_after_error") {
    initialize_own_mpi(argc, argv);
    {
      const auto communicator = zerosched::mpi_communicator(MPI_COMM_WORLD);
      try {
        communicator->barrier()
            ->wait();  // which a rank may be the last to leave, when another has failed already
        if (communicator->rank() == last) communicator->abort("the disk is gone");
        communicator->barrier()->wait();
      } catch (const std::exception& error) {
        report(first_line(error).c_str());
      }
    }
    MPI_Finalize();
  } else if (mode == "fork_abort" || mode == "fork_exit" || mode == "fork_return" || mode == "fork_throw") {
    return forked(mode.substr(5), argc, argv);
  } else if (mode == "suspended") {
    Session session(argc, argv, SessionOptions().timeout(2));
    for (int i = 0; i < 80; ++i) {
      all_reduce(session);
      sleep_seconds(0.05);
    }
  } else if (mode == "session_ends_early") {
    // Of one rank, whose duplicate lives on.
    static std::shared_ptr<zerosched::Communicator> duplicate;
    Session session(argc, argv);
    duplicate = session.communicator()->duplicate();
    if (session.rank() != last) duplicate->barrier({"step"})->wait();
  } else if (mode == "poisoned") {
    // The failure is swallowed, and its duplicate is gone when the session ends.
    Session session(argc, argv);
    try {
      const auto duplicate = session.communicator()->duplicate();
      if (session.rank() == last) duplicate->abort("rank " + std::to_string(last) + ": nan in the loss");
      duplicate->barrier()->wait();
      duplicate->barrier()->wait();
    } catch (const std::exception&) {
    }
  } else if (mode == "abort") {
    Session session(argc, argv);
    if (session.rank() == last) session.abort("enough", 75);
    all_reduce(session);
  } else if (mode == "stopped" || mode == "killed") {
    Session session(argc, argv, SessionOptions().timeout(2));
    all_reduce(session);
    if (session.rank() == last) raise(mode == "stopped" ? SIGSTOP : SIGKILL);
    all_reduce(session);
    all_reduce(session);
  } else if (mode == "stopped_before" || mode == "killed_before") {
    if (launched_rank() == last) raise(mode == "stopped_before" ? SIGSTOP : SIGKILL);
    join();
  } else if (mode == "last_stopped_after_init" || mode == "first_stopped_after_init") {
    initialize_own_mpi(argc, argv);
    if (launched_rank() == (mode == "last_stopped_after_init" ? last : 0)) raise(SIGSTOP);
    join();
  } else if (mode == "stopped_while_joining") {
    stops_in_split = launched_rank() == last;
    join();
  } else if (mode == "stopped_in_duplicate") {
    Session session(argc, argv, SessionOptions().timeout(2));
    stops_in_duplicate = session.rank() == last;
    session.communicator()->duplicate();
  } else if (mode == "not_connected") {
    try {
      Session session(argc, argv);
    } catch (const std::exception& error) {
      report(first_line(error).c_str());
    }
    int finalized = 0;
    MPI_Finalized(&finalized);
    say(finalized ? "finalised" : "not finalised");
  } else if (mode == "late_note") {
    // Every other rank is already waiting for the end of the session.
    Session session(argc, argv);
    if (session.rank() == last) {
      sleep_seconds(0.5);
      throw std::runtime_error("failed after the others were done");
    }
  } else if (mode == "quiet_exit") {
    Session session(argc, argv);
    all_reduce(session);
    if (session.rank() == last) _exit(3);
    all_reduce(session);
  } else if (mode == "slow_rank") {
    // Ranks that are done wait longer than the timeout for one that is alive.
    Session session(argc, argv, SessionOptions().timeout(2));
    all_reduce(session);
    if (session.rank() == last) sleep_seconds(5);
  } else {
    std::fprintf(stderr, "unknown mode %s\n", mode.c_str());
    return 64;
  }
  return 0;
}

}  // namespace

// The library's first call that cannot be given up, instead of MPI's.
int MPI_Comm_split_type(MPI_Comm comm, int type, int key, MPI_Info info, MPI_Comm* result) {
  if (stops_in_split) raise(SIGSTOP);
  return PMPI_Comm_split_type(comm, type, key, info, result);
}

// What a duplicate is made with.
int MPI_Comm_idup(MPI_Comm comm, MPI_Comm* result, MPI_Request* request) {
  if (stops_in_duplicate) raise(SIGSTOP);
  return PMPI_Comm_idup(comm, result, request);
}

int main(int argc, char** argv) { return run(argc > 1 ? argv[1] : "", argc, argv); }
