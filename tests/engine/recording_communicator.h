#pragma once

#include "engine/passing_communicator.h"

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

/// Writes every launch into a log as "reduce_scatter 3" (the label's bucket), or without the number where
/// there is none. Duplicates write into the same log.
class RecordingCommunicator final : public PassingCommunicator {
 public:
  RecordingCommunicator(std::shared_ptr<Communicator> inner, std::shared_ptr<Log> log)
      : PassingCommunicator(std::move(inner)), log_(std::move(log)) {}

  std::shared_ptr<Communicator> duplicate() override {
    return std::make_shared<RecordingCommunicator>(inner().duplicate(), log_);
  }

 private:
  void launching(Collective kind, const CollectiveLabel& label) override {
    std::string event(name_of(kind));
    if (label.bucket >= 0) event += " " + std::to_string(label.bucket);
    log_->add(event);
  }

  std::shared_ptr<Log> log_;
};

}  // namespace zerosched::testing
