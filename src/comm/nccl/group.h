#pragma once

#include "comm/failure/departures.h"
#include "comm/failure/history.h"
#include "comm/failure/investigation.h"
#include "comm/nccl/blocking_call.h"
#include "comm/nccl/comm.h"
#include "comm/nccl/memory.h"
#include "comm/nccl/options.h"
#include "device/event_pool.h"

#include <zerosched/communicator.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace zerosched::detail {

class NcclWork;

/// The state behind one NCCL communicator: its stream, its collectives in flight, and what is needed to give
/// up.
///
/// Failure has one home, the bootstrap communicator: to fail is to abort it, which tells the other ranks, and
/// what it says when it has failed is what this one says. The watching thread then has NCCL's communicator
/// aborted, and ends the process if that does not end what is on the device: nothing else would, and whoever waits
/// for the device cannot be told.
class NcclGroup final : public Investigated, public std::enable_shared_from_this<NcclGroup> {
 public:
  /// Takes over `host`, a communicator over the same ranks of the library's own, and `comm`, which has
  /// joined. `id` is the same on every rank and differs from that of any other group of the job.
  NcclGroup(std::shared_ptr<Communicator> host, std::shared_ptr<NcclComm> comm, int device, uint64_t id,
      const NcclOptions& options);
  ~NcclGroup() override;
  NcclGroup(const NcclGroup&) = delete;
  NcclGroup& operator=(const NcclGroup&) = delete;

  std::string name() const override;
  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  double timeout_seconds() const override { return options_.timeout_seconds; }
  bool failed() const override { return !host_->failure().empty(); }
  bool answers_when_busy() const override { return true; }
  const Departures& departures() const override { return departures_; }
  bool has_left() const override;
  bool has_ended(int64_t sequence) const override;
  ControlMessage::Position position(int64_t sequence) const override;
  void send(int peer, const ControlMessage& message) override;
  void fail(const Cause& cause) override;

  void set_owner(const std::string& owner);
  /// Tells the other ranks that this one launches no more; the first reason counts. An empty one is made one here.
  void leave(std::string why);

  /// Throws the failure if there is one.
  void check() const { host_->check(); }
  /// Carries what is not on the device.
  Communicator& host() const { return *host_; }
  device::Runtime& runtime() const { return *options_.runtime; }
  const NcclApi& api() const { return *options_.api; }
  const NcclOptions& options() const { return options_; }
  const std::shared_ptr<NcclComm>& comm() const { return comm_; }
  device::EventPool& events() { return events_; }
  int device() const { return device_; }
  NcclMemory& memory() const { return *memory_; }

  /// Makes one NCCL call on the communicator's stream, ordered after what the current stream holds now.
  /// `tensors` are held until the device has done with them.
  using Call = std::function<ncclResult_t(ncclComm_t, cudaStream_t)>;
  std::shared_ptr<NcclWork> launch(
      const char* name, Header header, std::vector<at::Tensor> tensors, const Call& call);

  /// The watching thread's. Returns when the group has been closed and nothing is in flight.
  void watch();
  /// Lets watch() end and waits for it, for what is in flight as long as that may take; for a second only if the
  /// group has failed or is `hasty`. Returns whether it has ended.
  bool close(bool hasty);

 private:
  struct InFlight {
    Header header;
    std::shared_ptr<NcclWork> work;
    std::vector<at::Tensor> tensors;
    std::chrono::steady_clock::time_point launched;
  };

  using Time = std::chrono::steady_clock::time_point;

  /// What went wrong on this rank, in `collective` if in any.
  Cause own_cause(const std::string& what, const Header* collective = nullptr) const;
  /// Lets go of what has ended; whether there was anything to ask the device for.
  bool reap();
  void forget(int64_t sequence);
  bool in_flight() const;

  // The watching thread's.
  void step(Time now);
  void give_up(const Cause& cause, bool quietly);
  void begin_abort(Time now);
  void reap_failed();
  void keep_what_is_left();
  void enforce_deadline(Time now);
  void listen(Time now);
  void look_into_oldest(Time now);
  void look_for_departed(Time now);
  bool finish_closing(Time now);

  std::shared_ptr<Communicator> host_;
  ControlRelay* relay_;  // host_ as what carries messages; null in a world of one
  std::shared_ptr<NcclComm> comm_;
  int device_;
  uint64_t id_;
  NcclOptions options_;
  std::shared_ptr<NcclMemory> memory_;
  device::EventPool events_;
  device::Stream stream_;
  device::Event caller_ready_;  // under launch_mutex_
  Time last_reap_;              // under launch_mutex_

  std::mutex launch_mutex_;  // collectives reach NCCL in the order of their numbers
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<InFlight> in_flight_;  // under mutex_, in the order of their numbers
  History history_;                 // under mutex_
  std::string owner_;               // under mutex_
  std::string why_left_;            // under mutex_
  bool closing_ = false;            // under mutex_
  bool closed_ = false;             // under mutex_
  bool look_now_ = false;           // under mutex_

  // The watching thread's.
  Investigation investigation_;
  Departures departures_;
  bool has_warned_ = false;  // of a device that does not end
  std::optional<BlockingCall> abort_, finalize_;
  Time abort_began_, finalize_began_;
};

}  // namespace zerosched::detail
