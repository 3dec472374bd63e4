#pragma once

#include "comm/report_end.h"

#include <exception>
#include <string>

namespace zerosched::detail {

/// What an exception says, without the stack trace that LibTorch appends.
std::string text_of(const std::exception_ptr& exception) noexcept;

}  // namespace zerosched::detail
