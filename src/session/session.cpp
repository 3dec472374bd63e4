#include <zerosched/session.h>

#include <zerosched/nccl_communicator.h>

#include "session/job.h"
#include "session/launcher.h"
#include "session/placement.h"
#include "session/report.h"

#include <c10/util/Exception.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <thread>
#include <utility>

namespace zerosched {

namespace {

using detail::kFailureExitCode;

std::atomic<bool> session_exists{false};
// The job that the terminate handler ends; null while there is no session.
std::atomic<detail::Job*> current_job{nullptr};
std::atomic<int> current_rank{0};
std::terminate_handler previous_handler = nullptr;

// The first failure of the job as this rank tells it to the others.
std::string note_of(const std::string& failure, const std::string& own_text) {
  return failure.empty() ? "rank " + std::to_string(current_rank) + ": " + own_text : failure;
}

[[noreturn]] void on_terminate() {
  static std::atomic<bool> entered{false};
  if (entered.exchange(true)) {
    // Another thread ends the process already.
    for (;;) std::this_thread::sleep_for(std::chrono::seconds(1));
  }
  detail::Job* job = current_job.load();
  if (job == nullptr) {
    if (previous_handler != nullptr) previous_handler();
    std::abort();
  }
  const std::string text = detail::text_of(std::current_exception());
  detail::report_end(current_rank, text);
  job->end(note_of(job->failure(), text), kFailureExitCode);
  std::abort();  // not reached; GCC does not see that end() is [[noreturn]] through a virtual call
}

void check_options(const SessionOptions& options) {
  TORCH_CHECK(std::isfinite(options.timeout()) && options.timeout() > 0, "session: the timeout is ",
      options.timeout(), " s; it must be positive and finite");
  TORCH_CHECK(std::isfinite(options.abort_timeout()) && options.abort_timeout() > 0,
      "session: the abort timeout is ", options.abort_timeout(), " s; it must be positive and finite");
  TORCH_CHECK(!options.device() || options.device()->is_cpu() || options.device()->is_cuda(),
      "session: the device is ", *options.device(), "; it must be at::kCPU or a CUDA device");
}

}  // namespace

class Session::Impl {
 public:
  Impl(int* argc, char*** argv, const SessionOptions& options) {
    check_options(options);
    const std::string transport = detail::choose_transport(options.backend());
    TORCH_CHECK(
        !session_exists.exchange(true), "session: there is one already; at most one may exist at a time");
    try {
      job_ = transport == "mpi"
                 ? detail::make_mpi_job(argc, argv, options.timeout(), options.flat_collectives())
                 : detail::make_self_job();
      place(options);
    } catch (...) {
      session_exists = false;
      throw;
    }
    current_rank = communicator_->rank();
    current_job = job_.get();
    previous_handler = std::set_terminate(on_terminate);
  }

  ~Impl() {
    const std::string failure = job_->failure();
    const int rank = current_rank;
    const bool unwinding = std::uncaught_exceptions() > exceptions_at_start_;
    if (unwinding && communicator_->size() > 1) {
      // Whoever catches the exception still reports it: the job's failure may only say that there was one.
      const std::string text = failure.empty() ? "an exception left the scope of its Session" : failure;
      detail::report_end(rank, text);
      job_->end_soon(note_of(failure, text), kFailureExitCode);
      // The job is still needed by what ends it.
      static_cast<void>(job_.release());
    } else if (!failure.empty()) {
      detail::report_end(rank, failure);
      end(failure);
    } else {
      communicator_.reset();
      try {
        job_->finish();
      } catch (const std::exception&) {
        const std::string text = detail::text_of(std::current_exception());
        detail::report_end(rank, text);
        end(note_of(job_->failure(), text));
      }
    }
    current_job = nullptr;
    std::set_terminate(previous_handler);
    session_exists = false;
  }

  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  [[noreturn]] void end(const std::string& message, int exit_code = kFailureExitCode) {
    job_->end(message, exit_code);
    std::abort();  // not reached, as above
  }

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
                .symmetric_memory(options.symmetric_memory()));
      };
      auto placement = detail::place_session(root, options, device::cuda(), make_nccl);
      device_ = placement.device;
      communicator_ = std::move(placement.communicator);
    } catch (const std::exception& error) {
      const std::string failure = job_->failure();
      if (failure.empty()) {
        job_->finish();  // every rank throws this, so none waits for another
        throw;
      }
      // The job can no longer be left in good order.
      detail::report_end(root->rank(), failure);
      end(failure);
    }
  }

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
  detail::report_end(rank(), message);
  impl_->end("rank " + std::to_string(rank()) + ": " + message, exit_code);
}

}  // namespace zerosched
