#pragma once

#include <zerosched/communicator.h>

#include <memory>
#include <utility>

namespace zerosched::testing {

/// Says of another work that waiting for it blocks the host, as a design would have it in which the host looks when a buffer
/// is free.
struct HostBlockingWork final : Work {
  explicit HostBlockingWork(std::shared_ptr<Work> work) : work(std::move(work)) {}
  void wait() override { work->wait(); }
  bool done() const noexcept override { return work->done(); }
  std::shared_ptr<Work> work;
};

/// Passes everything on to another communicator, and shows what it launches to those who derive from it.
class PassingCommunicator : public Communicator {
 public:
  explicit PassingCommunicator(std::shared_ptr<Communicator> inner)
      : Communicator(inner->rank(), inner->size(), inner->local_rank()), inner_(std::move(inner)) {}

  const char* backend() const override { return inner_->backend(); }
  void abort(const std::string& message) noexcept override { inner_->abort(message); }
  std::string failure() const override { return inner_->failure(); }

 protected:
  Communicator& inner() { return *inner_; }
  /// Before the launch.
  virtual void launching(Collective, const CollectiveLabel&) {}
  /// What the launch gives instead of `work`.
  virtual std::shared_ptr<Work> launched(Collective, const CollectiveLabel&, std::shared_ptr<Work> work) {
    return work;
  }

 private:
  template <typename Launch>
  std::shared_ptr<Work> pass(Collective kind, const CollectiveLabel& label, Launch&& launch) {
    launching(kind, label);
    return launched(kind, label, launch());
  }

  at::Tensor do_allocate(int64_t numel, at::ScalarType dtype, at::Device device, Collective use) override {
    return inner_->allocate(numel, dtype, device, use);
  }
  std::shared_ptr<Work> do_reduce_scatter(
      const at::Tensor& flat, const at::Tensor& shard_out, CollectiveLabel label) override {
    return pass(
        Collective::reduce_scatter, label, [&] { return inner_->reduce_scatter(flat, shard_out, label); });
  }
  std::shared_ptr<Work> do_all_gather(const at::Tensor& flat, CollectiveLabel label) override {
    return pass(Collective::all_gather, label, [&] { return inner_->all_gather(flat, label); });
  }
  std::shared_ptr<Work> do_all_reduce(const at::Tensor& tensor, ReduceOp op, CollectiveLabel label) override {
    return pass(Collective::all_reduce, label, [&] { return inner_->all_reduce(tensor, op, label); });
  }
  std::shared_ptr<Work> do_broadcast(const at::Tensor& tensor, int root, CollectiveLabel label) override {
    return pass(Collective::broadcast, label, [&] { return inner_->broadcast(tensor, root, label); });
  }
  std::shared_ptr<Work> do_barrier(CollectiveLabel label) override {
    return pass(Collective::barrier, label, [&] { return inner_->barrier(label); });
  }

  std::shared_ptr<Communicator> inner_;
};

}  // namespace zerosched::testing
