#pragma once

#include "engine/passing_communicator.h"
#include "engine/recording_communicator.h"

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>

namespace zerosched::testing {

/// Writes the gathers of a step's parameters into a log: "gather 3" of bucket 3 when it is launched, "wait 3" when
/// somebody waits for it. Duplicates write into the same log.
class GatherLog final : public PassingCommunicator {
 public:
  GatherLog(
      std::shared_ptr<Communicator> inner, std::shared_ptr<Log> log,
      std::chrono::milliseconds wait_takes = std::chrono::milliseconds(0),
      std::function<void(int64_t bucket)> before_launch = [](int64_t) {})
      : PassingCommunicator(std::move(inner)),
        log_(std::move(log)),
        wait_takes_(wait_takes),
        before_launch_(std::move(before_launch)) {}

  std::shared_ptr<Communicator> duplicate() override {
    return std::make_shared<GatherLog>(inner().duplicate(), log_, wait_takes_, before_launch_);
  }

 private:
  class LoggedWork final : public Work {
   public:
    LoggedWork(std::shared_ptr<Work> work, std::shared_ptr<Log> log, std::string event,
        std::chrono::milliseconds wait_takes)
        : work_(std::move(work)), log_(std::move(log)), event_(std::move(event)), wait_takes_(wait_takes) {}
    void wait() override {
      log_->add(event_);
      std::this_thread::sleep_for(wait_takes_);
      work_->wait();
    }
    bool done() const noexcept override { return work_->done(); }
    bool blocks_host() const noexcept override { return work_->blocks_host(); }

   private:
    std::shared_ptr<Work> work_;
    std::shared_ptr<Log> log_;
    std::string event_;
    std::chrono::milliseconds wait_takes_;
  };

  static bool is_of_step(Collective kind, const CollectiveLabel& label) {
    return kind == Collective::all_gather && std::string(label.what) == "parameters";
  }
  void launching(Collective kind, const CollectiveLabel& label) override {
    if (is_of_step(kind, label)) before_launch_(label.bucket);
  }
  std::shared_ptr<Work> launched(
      Collective kind, const CollectiveLabel& label, std::shared_ptr<Work> work) override {
    if (!is_of_step(kind, label)) return work;
    const std::string bucket = std::to_string(label.bucket);
    log_->add("gather " + bucket);
    return std::make_shared<LoggedWork>(std::move(work), log_, "wait " + bucket, wait_takes_);
  }

  std::shared_ptr<Log> log_;
  std::chrono::milliseconds wait_takes_;
  std::function<void(int64_t)> before_launch_;
};

}  // namespace zerosched::testing
