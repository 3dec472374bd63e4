#pragma once

#include <c10/util/Exception.h>

#include <string>
#include <vector>

namespace zerosched::testing {

/// Collects what this thread warns of while it lives, instead of printing it. What is warned of once per process
/// is warned of each time.
class Warnings {
 public:
  Warnings() : guard_(&handler_), always_(true) {}

  /// Those so far of which some part says `text`.
  std::vector<std::string> with(const std::string& text) const {
    std::vector<std::string> found;
    for (const std::string& message : handler_.messages) {
      if (message.find(text) != std::string::npos) found.push_back(message);
    }
    return found;
  }

 private:
  struct Handler final : c10::WarningHandler {
    void process(const c10::Warning& warning) override { messages.push_back(warning.msg()); }
    std::vector<std::string> messages;
  };

  Handler handler_;
  c10::WarningUtils::WarningHandlerGuard guard_;
  c10::WarningUtils::WarnAlways always_;
};

}  // namespace zerosched::testing
