#pragma once

#include "comm/mpi/operation.h"

#include <vector>

namespace zerosched::detail {

/// Collectives that MPI's own non-blocking ones do: requests that are started once and tested until all are
/// complete.
class StockOperation : public Operation {
 public:
  using Operation::Operation;

 protected:
  bool poll_data() override;
  /// Called once all requests are complete.
  virtual void finish() {}
  std::vector<MPI_Request> requests_;
};

class Broadcast final : public StockOperation {
 public:
  using StockOperation::StockOperation;

 private:
  void start_data() override;
};

/// The exchange of headers is a barrier already.
class Barrier final : public StockOperation {
 public:
  using StockOperation::StockOperation;

 private:
  void start_data() override {}
};

/// MPI's own duplicate of the group's communicator.
class Duplicate final : public StockOperation {
 public:
  using StockOperation::StockOperation;
  /// Once it has ended; the caller's to free.
  MPI_Comm result() const { return result_; }

 private:
  void start_data() override;
  MPI_Comm result_ = MPI_COMM_NULL;
};

/// 16-bit types travel and are summed as float32, and are rounded once: MPI has no such types, and an MPI_Op
/// of our own on 16-bit data would round at every stage of MPI's algorithm.
class AllReduce final : public StockOperation {
 public:
  using StockOperation::StockOperation;

 private:
  void start_data() override;
  void finish() override;
  std::vector<float> widened_;
};

}  // namespace zerosched::detail
