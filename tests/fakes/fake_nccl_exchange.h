#pragma once

#include <nccl.h>

#include <mpi.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace zerosched::testing {

/// One collective of the fake NCCL: everybody sends everybody all they have, and computes.
class Exchange {
 public:
  enum class Kind : int32_t { hello, reduce_scatter, all_gather, all_reduce, broadcast };
  struct Collective {
    Kind kind;
    const void* send;
    void* receive;
    const void* receive_own;  // where `send` is if the collective is in place
    size_t count;
    ncclDataType_t type;
    ncclRedOp_t op;
    int root;
  };

  /// Collective, before the first exchange.
  static void connect();
  static size_t bytes(ncclDataType_t type);

  /// A hello, unless set() makes it a collective. `communicator` and `sequence` tell exchanges apart.
  Exchange(
      int rank, int size, int communicator, int64_t sequence, std::shared_ptr<std::atomic<bool>> aborted);
  ~Exchange();
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;
  void set(const Collective& collective) { collective_ = collective; }

  /// Whether the communicator was aborted.
  bool killed() const { return *aborted_; }
  /// Goes on; true once it has ended, with a result or by an abort.
  bool step();

 private:
  enum class Phase { start, headers, data, done };
  void post(const void* send, size_t byte_count, std::vector<std::vector<char>>& received, int tag);
  bool all_arrived();
  size_t contribution_bytes() const;
  void compute();

  int rank_, size_, tag_;
  std::shared_ptr<std::atomic<bool>> aborted_;
  Collective collective_{Kind::hello, nullptr, nullptr, nullptr, 0, ncclInt8, ncclSum, -1};
  Phase phase_ = Phase::start;
  std::vector<char> own_header_, own_data_;
  std::vector<std::vector<char>> headers_, data_;  // by rank
  std::vector<MPI_Request> requests_;
};

}  // namespace zerosched::testing
