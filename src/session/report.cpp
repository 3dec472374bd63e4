#include "session/report.h"

#include "comm/message_of.h"

namespace zerosched::detail {

std::string text_of(const std::exception_ptr& exception) noexcept {
  if (!exception) return "terminated without an exception";
  try {
    std::rethrow_exception(exception);
  } catch (const std::exception& error) {
    return message_of(error);
  } catch (...) {
    return "an exception that is not a std::exception";
  }
}

}  // namespace zerosched::detail
