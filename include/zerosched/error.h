#pragma once

#include <zerosched/export.h>

#include <c10/util/Exception.h>

#include <string>
#include <utility>
#include <vector>

namespace zerosched {

/// What the library throws. what() has the C++ backtrace behind the message, as LibTorch's errors do;
/// what_without_backtrace() is the message alone.
class ZEROSCHED_EXPORT Error : public c10::Error {
 public:
  /// Made where it is thrown.
  explicit Error(const std::string& message) : c10::Error({__func__, __FILE__, __LINE__}, message) {}
  /// Made at `where`.
  Error(c10::SourceLocation where, const std::string& message) : c10::Error(where, message) {}
};

/// A failure of the job that ranks have told each other: every rank throws it, with the same words and numbers, and the
/// communicator throws it from then on.
class ZEROSCHED_EXPORT CommunicationError : public Error {
 public:
  /// Of what the functions below return.
  CommunicationError(
      const std::string& message, int rank, std::string collective, std::vector<int> missing_ranks)
      : Error(message),
        rank_(rank),
        collective_(std::move(collective)),
        missing_ranks_(std::move(missing_ranks)) {}

  /// The rank whose error it was, or that has left; -1 if it is nobody's: a network's, or that of ranks who are not here.
  int rank() const { return rank_; }
  /// What could not be done, "reduce_scatter #12 'gradients' (bucket 3, step 5)"; empty outside of collectives.
  const std::string& collective() const { return collective_; }
  /// Who did not come to it, ascending; empty if everyone has, or nobody was asked.
  const std::vector<int>& missing_ranks() const { return missing_ranks_; }

 private:
  int rank_;
  std::string collective_;
  std::vector<int> missing_ranks_;
};

/// A checkpoint, or a file with weights, that cannot be written, read or taken up. What was there before is as it was, unless
/// a load failed half-way, after all had been verified: then the optimizer's communicator has given up.
class ZEROSCHED_EXPORT CheckpointError : public Error {
 public:
  /// About `path`.
  CheckpointError(const std::string& message, std::string path) : Error(message), path_(std::move(path)) {}

  /// The folder or file that the call was given. The message names the file in it that is at fault.
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace zerosched
