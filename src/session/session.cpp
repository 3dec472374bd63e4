#include <zerosched/session.h>

#include <zerosched/nccl_communicator.h>

#include "base/check.h"
#include "base/message_of.h"
#include "base/owner_process.h"
#include "comm/failure/report_end.h"
#include "comm/failure/terminate.h"
#include "comm/failure/whereabouts.h"
#include "session/job.h"
#include "session/launcher.h"
#include "session/placement.h"

#include <c10/util/Exception.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <utility>

namespace zerosched {

namespace {

std::atomic<bool> session_exists{false};
// The job that the terminate handler ends; null while there is no session.
std::atomic<detail::Job*> current_job{nullptr};
std::atomic<int> current_rank{0};

// The first failure of the job as this rank tells it to the others.
detail::Cause note_of(const detail::Cause& failure, const std::string& own_text) {
  if (!failure.text.empty()) return failure;
  return {"rank " + std::to_string(current_rank) + ": " + own_text, current_rank};
}

void end_current_job(const std::string& what) {
  detail::Job* job = current_job.load();
  detail::report_end(current_rank, what);
  job->end(note_of(job->failure(), what), kFailureExitCode);
}

void check_options(const SessionOptions& options) {
  ZEROSCHED_CHECK(std::isfinite(options.timeout()) && options.timeout() > 0, "session: the timeout is ",
      options.timeout(), " s; it must be positive and finite");
  ZEROSCHED_CHECK(std::isfinite(options.abort_timeout()) && options.abort_timeout() > 0,
      "session: the abort timeout is ", options.abort_timeout(), " s; it must be positive and finite");
  ZEROSCHED_CHECK(!options.device() || options.device()->is_cpu() || options.device()->is_cuda(),
      "session: the device is ", *options.device(), "; it must be at::kCPU or a CUDA device");
}

}  // namespace

class Session::Impl {
 public:
  Impl(int* argc, char*** argv, const SessionOptions& options) : on_failure_(options.on_failure()) {
    check_options(options);
    const std::string transport = detail::choose_transport(options.backend(), detail::has_mpi_world());
    ZEROSCHED_CHECK(
        !session_exists.exchange(true), "session: there is one already; at most one may exist at a time");
    const detail::InCall call("the Session's constructor");
    try {
      job_ = transport == "mpi" ? detail::make_mpi_job(argc, argv, options) : detail::make_self_job();
      place(options);
    } catch (...) {
      session_exists = false;
      throw;
    }
    current_rank = communicator_->rank();
    current_job = job_.get();
    if (on_failure_ == OnFailure::end) detail::set_session_end(end_current_job);
  }

  ~Impl() {
    if (!process_.is_this()) {
      // A child that fork() has made has no part in the job.
      static_cast<void>(job_.release());
      new std::shared_ptr(communicator_);
      return;
    }
    const detail::InCall call("the end of its Session");
    const detail::Cause failure = job_->failure();
    const bool unwinding = std::uncaught_exceptions() > exceptions_at_start_ && communicator_->size() > 1;
    if (!unwinding && failure.text.empty()) {
      finish();
    } else {
      give_up(failure, unwinding);
    }
    current_job = nullptr;
    session_exists = false;
  }

  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  bool is_in_its_process() const { return process_.is_this(); }

  [[noreturn]] void end(const detail::Cause& cause, int exit_code = kFailureExitCode) {
    if (on_failure_ == OnFailure::raise) {
      job_->tell(cause);
      cause.raise();
    }
    job_->end(cause, exit_code);
    std::abort();  // not reached; GCC does not see that end() is [[noreturn]] through a virtual call
  }

  bool ends_process() const { return on_failure_ == OnFailure::end; }
  const std::shared_ptr<Communicator>& communicator() const { return communicator_; }
  at::Device device() const { return device_; }

 private:
  void place(const SessionOptions& options) {
    const auto root = job_->communicator();
    try {
      const auto make_nccl = [&](at::Device device) {
        return nccl_communicator(root, device,
            NcclCommunicatorOptions()
                .timeout(options.timeout())
                .abort_timeout(options.abort_timeout())
                .symmetric_memory(options.symmetric_memory())
                .end_process(ends_process()));
      };
      auto placement = detail::place_session(root, options, device::cuda(), make_nccl);
      device_ = placement.device;
      communicator_ = std::move(placement.communicator);
    } catch (const std::exception& error) {
      const detail::Cause failure = job_->failure();
      if (failure.text.empty()) {
        job_->finish();  // every rank throws this, so none waits for another
        throw;
      }
      // The job can no longer be left in good order.
      if (ends_process()) detail::report_end(root->rank(), failure.text);
      end(failure);
    }
  }

  void finish() noexcept {
    communicator_.reset();
    try {
      job_->finish();
      if (ends_process()) detail::set_session_end(nullptr);
    } catch (const std::exception& error) {
      const std::string text = detail::message_of(error);
      give_up(note_of(job_->failure(), text), false);
    }
  }

  // Whoever catches the exception that unwinds still reports it: the job's failure may only say that there was one.
  void give_up(const detail::Cause& failure, bool unwinding) noexcept {
    const std::string text =
        failure.text.empty() ? "an exception left the scope of its Session" : failure.text;
    const detail::Cause note = note_of(failure, text);
    if (!ends_process()) {
      job_->tell(note);
      if (!unwinding) {
        TORCH_WARN("zerosched: rank ", current_rank, ": the Session ends, and its job has failed: ", text);
      }
      static_cast<void>(
          job_.release());  // whose MPI, were it the session's own, nobody could finalise any more
      return;
    }
    detail::report_end(current_rank, text);
    if (!unwinding) job_->end(note, kFailureExitCode);
    job_->end_soon(note, kFailureExitCode);
    static_cast<void>(job_.release());  // it is still needed by what ends it
    detail::set_session_end(nullptr);
    // A handler that throws on must not be faster than the end.
    detail::await_end_on_terminate();
  }

  const OnFailure on_failure_;
  detail::OwnerProcess process_;
  at::Device device_ = at::kCPU;
  int exceptions_at_start_ = std::uncaught_exceptions();
  std::unique_ptr<detail::Job> job_;
  std::shared_ptr<Communicator> communicator_;
};

Session::Session(int& argc, char**& argv, const SessionOptions& options)
    : impl_(std::make_unique<Impl>(&argc, &argv, options)) {}
Session::Session(const SessionOptions& options) : impl_(std::make_unique<Impl>(nullptr, nullptr, options)) {}
Session::~Session() = default;

std::shared_ptr<Communicator> Session::communicator() const { return impl_->communicator(); }
at::Device Session::device() const { return impl_->device(); }
int Session::rank() const { return impl_->communicator()->rank(); }
int Session::world_size() const { return impl_->communicator()->size(); }
int Session::local_rank() const { return impl_->communicator()->local_rank(); }

void Session::abort(const std::string& message, int exit_code) {
  ZEROSCHED_CHECK(impl_->is_in_its_process(),
      "Session::abort() was called in a child that fork() has made of rank ", rank(),
      ", which has no part in the job; end the child by its exit code, and let the rank end the job: ",
      message);
  if (impl_->ends_process()) detail::report_end(rank(), message);
  impl_->end({"rank " + std::to_string(rank()) + ": " + message, rank()}, exit_code);
}

}  // namespace zerosched
