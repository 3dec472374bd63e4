#pragma once

#include <c10/util/Exception.h>

#include <exception>
#include <string>

namespace zerosched::detail {

/// What an exception says, without the C++ backtrace that c10::Error::what() appends.
inline std::string message_of(const std::exception& error) {
  const auto* c10_error = dynamic_cast<const c10::Error*>(&error);
  return c10_error != nullptr ? c10_error->what_without_backtrace() : error.what();
}

}  // namespace zerosched::detail
