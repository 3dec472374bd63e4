#pragma once

#include <zerosched/communicator.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace zerosched::testing {

/// What happened on this rank, in order.
class Log {
 public:
  void add(const std::string& event) {
    const std::lock_guard<std::mutex> lock(mutex_);
    events_.push_back(event);
  }
  std::vector<std::string> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return std::move(events_);
  }

 private:
  std::mutex mutex_;
  std::vector<std::string> events_;
};

/// Passes everything on to another communicator, and writes every launch into a log as "reduce_scatter 3"
/// (the label's bucket), or without the number where there is none. Duplicates write into the same log.
class RecordingCommunicator final : public Communicator {
 public:
  /// `synchronous`: a reduce-scatter has ended when its launch returns, so that nothing depends on how fast
  /// peers are.
  RecordingCommunicator(std::shared_ptr<Communicator> inner, std::shared_ptr<Log> log, bool synchronous = false)
      : Communicator(inner->rank(), inner->size(), inner->local_rank()),
        inner_(std::move(inner)), log_(std::move(log)), synchronous_(synchronous) {}

  const char* backend() const override { return inner_->backend(); }
  std::shared_ptr<Communicator> duplicate() override {
    return std::make_shared<RecordingCommunicator>(inner_->duplicate(), log_, synchronous_);
  }
  void abort(const std::string& message) noexcept override { inner_->abort(message); }
  std::string failure() const override { return inner_->failure(); }

 private:
  void record(Collective kind, const CollectiveLabel& label) {
    std::string event(name_of(kind));
    if (label.bucket >= 0) event += " " + std::to_string(label.bucket);
    log_->add(event);
  }

  at::Tensor do_allocate(int64_t numel, at::ScalarType dtype, at::Device device) override {
    return inner_->allocate(numel, dtype, device);
  }
  std::shared_ptr<Work> do_reduce_scatter(
      const at::Tensor& flat, const at::Tensor& shard_out, CollectiveLabel label) override {
    record(Collective::reduce_scatter, label);
    auto work = inner_->reduce_scatter(flat, shard_out, label);
    if (synchronous_) work->wait();
    return work;
  }
  std::shared_ptr<Work> do_all_gather(const at::Tensor& flat, CollectiveLabel label) override {
    record(Collective::all_gather, label);
    return inner_->all_gather(flat, label);
  }
  std::shared_ptr<Work> do_all_reduce(const at::Tensor& tensor, ReduceOp op, CollectiveLabel label) override {
    record(Collective::all_reduce, label);
    return inner_->all_reduce(tensor, op, label);
  }
  std::shared_ptr<Work> do_broadcast(const at::Tensor& tensor, int root, CollectiveLabel label) override {
    record(Collective::broadcast, label);
    return inner_->broadcast(tensor, root, label);
  }
  std::shared_ptr<Work> do_barrier(CollectiveLabel label) override {
    record(Collective::barrier, label);
    return inner_->barrier(label);
  }

  std::shared_ptr<Communicator> inner_;
  std::shared_ptr<Log> log_;
  bool synchronous_;
};

}  // namespace zerosched::testing
