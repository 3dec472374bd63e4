#pragma once

#include "base/message_of.h"

#include <zerosched/error.h>

#include <exception>
#include <string>

namespace zerosched::detail {

/// Runs `call`, which is about the folder or file `path`. What goes wrong with that is a CheckpointError; what goes wrong
/// with the job stays what it is.
template <typename Call>
auto about_path(const std::string& path, Call&& call) {
  try {
    return call();
  } catch (const CommunicationError&) {
    throw;
  } catch (const std::exception& error) {
    throw CheckpointError(message_of(error), path);
  }
}

}  // namespace zerosched::detail
