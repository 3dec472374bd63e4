#pragma once

#include "base/message_of.h"

#include <zerosched/communicator.h>
#include <zerosched/error.h>

#include <exception>
#include <string>

namespace zerosched::detail {

/// What every rank throws, and knows that every other throws: nobody needs to be told.
class AgreedError : public Error {
 public:
  using Error::Error;
};

/// Makes an error of some ranks the error of all. Collective: every rank calls, with an empty string if
/// nothing is wrong on it. Returns if all strings are empty; otherwise every rank throws an AgreedError with the
/// message of the lowest rank that has one, as "rank K: message". One all-reduce of 8 bytes when all is well.
void agree(Communicator& communicator, const std::string& local_error);

/// Runs `function`, on every rank, and makes an exception of some ranks one of all, as above. Collective;
/// `function` itself may not be, because a rank that fails in it would leave the others waiting.
template <typename Function>
void agree_on(Communicator& communicator, Function&& function) {
  std::string error;
  try {
    function();
  } catch (const std::exception& exception) {
    error = message_of(exception);
    if (error.empty()) error = "an exception without a message";
  }
  agree(communicator, error);
}

/// Whether it is so on every rank. Collective.
bool on_all_ranks(Communicator& communicator, bool here, const char* what);

/// The bytes of rank `root`, on every rank; `bytes` of other ranks are ignored. Collective: two broadcasts.
std::string broadcast_bytes(
    Communicator& communicator, const std::string& bytes, int root, CollectiveLabel label = {"bytes"});

}  // namespace zerosched::detail
