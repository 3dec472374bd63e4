#pragma once

#include "comm/failure/header.h"
#include "comm/mpi/staging.h"

#include <zerosched/communicator.h>

#include <mpi.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

namespace zerosched::detail {

class MpiGroup;
using Clock = std::chrono::steady_clock;

/// One collective of an MpiGroup, from queue to end: the exchange of headers and, in subclasses, the data.
/// start() and poll() run under the progress lock and never block; wait() and done() are anyone's.
///
/// Headers go round as in a dissemination barrier: in round k to the rank 2^k further, after the header of
/// the rank 2^k before has proved equal. A rank through with all ceil(log2(N)) rounds knows that all ranks
/// are in this same collective. MPI's own collectives start only then: on ranks in different ones they would
/// mix up their messages, which Open MPI reports to the error handler of MPI_COMM_WORLD, and that ends the
/// job without naming either.
class Operation : public Work {
 public:
  /// `tensors` are in host memory: those of `staging` if there is one.
  Operation(std::shared_ptr<MpiGroup> group, const Header& header, std::vector<at::Tensor> tensors,
      std::unique_ptr<Staging> staging = nullptr);

  void wait() override;
  bool done() const noexcept override;

  const Header& header() const { return header_; }
  /// Numbers the collective when it is queued.
  void enqueue(uint64_t group, int64_t sequence);

  void start();
  /// Advances; returns whether anything moved. Ends the operation once data and header check are through.
  bool poll();
  bool ended() const { return ended_.load(std::memory_order_acquire); }

  /// Whether another rank's header has arrived and is not ours.
  bool mismatch() const { return mismatch_; }
  bool headers_agree() const { return round_ == rounds_.size(); }
  /// What MPI said about the data, or empty.
  const std::string& error() const { return error_; }
  Clock::time_point error_time() const { return error_time_; }

  Clock::time_point started() const { return started_; }
  void restart_timeout(Clock::time_point now) { started_ = now; }
  /// Such a collective may take as long as all ranks are alive: the timeout only asks whether they are.
  void be_patient() { patient_ = true; }
  bool patient() const { return patient_; }

 protected:
  /// Whether data may move before it is known that all ranks are in this collective.
  virtual bool starts_at_once() const { return false; }
  virtual void start_data() = 0;
  /// Returns whether anything moved; sets data_done() at the end.
  virtual bool poll_data() = 0;
  void set_data_done() { data_done_ = true; }
  MpiGroup& group() { return *group_; }
  const at::Tensor& tensor(size_t i) const { return tensors_[i]; }

 private:
  struct Round {
    Header received{};
    MPI_Request receive = MPI_REQUEST_NULL;
    MPI_Request send = MPI_REQUEST_NULL;
  };

  void send_header();
  bool poll_headers();
  bool headers_sent();
  bool guarded_data(bool start);
  bool may_start_data();
  bool bring_back();
  /// Whether wait() may return: tensors of a device are then on their way, and the stream waits for them.
  bool usable() const { return staging_ != nullptr ? staging_->sent_back() : ended(); }

  std::shared_ptr<MpiGroup> group_;
  Header header_;
  std::vector<at::Tensor> tensors_;
  std::unique_ptr<Staging> staging_;
  std::vector<Round> rounds_;
  size_t round_ = 0;
  bool mismatch_ = false;
  bool data_started_ = false;
  bool data_done_ = false;
  bool patient_ = false;
  std::string error_;
  Clock::time_point error_time_, started_;
  std::atomic<bool> ended_{false};
};

}  // namespace zerosched::detail
