#pragma once

#include <zerosched/export.h>

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace zerosched {

/// The kinds of collective that a Communicator offers.
enum class Collective : uint8_t { reduce_scatter, all_gather, all_reduce, broadcast, barrier };
/// How many there are.
inline constexpr int kCollectiveKinds = 5;

/// "reduce_scatter", "all_gather", ...
ZEROSCHED_EXPORT std::string_view name_of(Collective kind);

/// What all_reduce() makes of two elements.
enum class ReduceOp : uint8_t { sum, max, min };

/// Says what a collective is for. All ranks must give the same label to the same collective: backends
/// compare it across ranks, so a mismatch becomes an error that quotes both instead of mixed-up data.
struct CollectiveLabel {
  const char* what = "";  ///< a string literal, for example "gradients"
  int64_t bucket = -1;    ///< bucket number, -1 if there is none
  int64_t step = -1;      ///< step number, -1 if there is none
};

/// What a communicator has moved so far, per kind of collective. Bytes are those of the whole tensor that
/// takes part: the flat input of a reduce-scatter, the gathered output of an all-gather, the reduced or
/// broadcast tensor.
struct ZEROSCHED_EXPORT Traffic {
  /// Of one kind of collective.
  struct Counter {
    int64_t calls = 0;  ///< how many were launched
    int64_t bytes = 0;  ///< of all their tensors
  };
  Counter reduce_scatter;  ///< of the flat inputs
  Counter all_gather;      ///< of the gathered outputs
  Counter all_reduce;      ///< of the tensors
  Counter broadcast;       ///< of the tensors
  Counter barrier;         ///< calls only
  /// The one of these members.
  Counter& of(Collective kind);
};

/// One collective in flight.
///
/// The tensors that take part are kept alive until the collective has ended; until then they must not be
/// read or written by anyone else.
class ZEROSCHED_EXPORT Work {
 public:
  virtual ~Work();
  Work() = default;
  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;

  /// Returns once the result may be used: blocks the host for CPU tensors, the current stream for CUDA
  /// tensors. Throws the communicator's CommunicationError if the collective failed, timed out or was aborted.
  virtual void wait() = 0;

  /// True once the collective has ended, well or not. Never blocks and never throws.
  virtual bool done() const noexcept = 0;

  /// Whether wait() can block the host. If not, it is a matter of the current stream alone.
  virtual bool blocks_host() const noexcept { return true; }
};

/// A fixed group of ranks that can run collectives on flat tensors.
///
/// Collectives are asynchronous and are launched by every rank in the same order. All tensors are dense,
/// contiguous and one-dimensional. Launching is thread-safe. Once a communicator has given up (a rank
/// failed, a collective timed out, abort() was called) every later call throws the same CommunicationError. A rank that destroys its
/// communicator tells the others: what they launch then, or have launched without it, throws at once and names it.
class ZEROSCHED_EXPORT Communicator {
 public:
  virtual ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  /// This process's number in the group, from 0.
  int rank() const { return rank_; }
  /// How many ranks the group has.
  int size() const { return size_; }
  /// Position among the ranks of this node: the index to pick a GPU by.
  int local_rank() const { return local_rank_; }
  /// On how many hosts the ranks are, as far as the backend is concerned: 1 but for "mpi".
  virtual int host_count() const { return 1; }
  /// "self", "mpi" or "nccl".
  virtual const char* backend() const = 0;

  /// An uninitialised 1-D tensor in the memory in which this backend is fastest at `use`.
  /// Collective: every rank must call with the same arguments, in the same order.
  ///
  /// Where such a tensor takes part in a collective, it must be the same on all ranks: from the same call, and at the
  /// same offset if it is a part. Backends may work out from its own address where a rank's peers have theirs.
  at::Tensor allocate(
      int64_t numel, at::ScalarType dtype, at::Device device, Collective use = Collective::all_gather);

  /// shard_out := slice rank() of the element-wise sum of all ranks' `flat`. `flat` has size() equal slices
  /// of shard_out.numel() elements each and the dtype of shard_out: float32, float64, bfloat16 or float16.
  /// The order of summation depends on size() and on which ranks share a host alone: a balanced binary tree over the
  /// ranks of each host, in the order of their numbers, and one over hosts, in the order of their lowest ranks. 16-bit
  /// types are summed in float32 and rounded once. (Order and precision of CUDA tensors over nccl are NCCL's.)
  /// Slice rank() of `flat` may be `shard_out`.
  std::shared_ptr<Work> reduce_scatter(
      const at::Tensor& flat, const at::Tensor& shard_out, CollectiveLabel label = {});

  /// In place: `flat` has size() equal slices, slice rank() is this rank's contribution, and afterwards all
  /// slices are those of their ranks. Any dtype.
  std::shared_ptr<Work> all_gather(const at::Tensor& flat, CollectiveLabel label = {});

  /// In place, element-wise. float32, float64, bfloat16, float16, int32, int64 or uint8.
  std::shared_ptr<Work> all_reduce(
      const at::Tensor& tensor, ReduceOp op = ReduceOp::sum, CollectiveLabel label = {});

  /// `tensor` of rank `root` replaces everyone's. Any dtype.
  std::shared_ptr<Work> broadcast(const at::Tensor& tensor, int root, CollectiveLabel label = {});

  /// Ends once every rank has launched it.
  std::shared_ptr<Work> barrier(CollectiveLabel label = {});

  /// A communicator over the same ranks whose collectives cannot mix with this one's. Collective.
  virtual std::shared_ptr<Communicator> duplicate() = 0;

  /// Gives up: collectives in flight end with an error, and every rank throws `message` from its next call
  /// and from waits it is in. Local, never blocks, never throws; the first message wins.
  virtual void abort(const std::string& message) noexcept = 0;

  /// The message that the communicator gave up with, or an empty string.
  virtual std::string failure() const = 0;

  /// Throws a CommunicationError if there is a failure(); returns at once otherwise.
  void check() const;

  /// Counters since construction; a snapshot.
  Traffic traffic() const;

 protected:
  /// For backends, which know these numbers.
  Communicator(int rank, int size, int local_rank);

  /// @{
  /// What backends implement. The public functions of these names check arguments and state before, and count
  /// traffic.
  virtual at::Tensor do_allocate(int64_t numel, at::ScalarType dtype, at::Device device, Collective use) = 0;
  virtual std::shared_ptr<Work> do_reduce_scatter(
      const at::Tensor& flat, const at::Tensor& shard_out, CollectiveLabel label) = 0;
  virtual std::shared_ptr<Work> do_all_gather(const at::Tensor& flat, CollectiveLabel label) = 0;
  virtual std::shared_ptr<Work> do_all_reduce(
      const at::Tensor& tensor, ReduceOp op, CollectiveLabel label) = 0;
  virtual std::shared_ptr<Work> do_broadcast(const at::Tensor& tensor, int root, CollectiveLabel label) = 0;
  virtual std::shared_ptr<Work> do_barrier(CollectiveLabel label) = 0;
  /// @}

 private:
  struct TrafficCounters;
  int rank_, size_, local_rank_;
  std::unique_ptr<TrafficCounters> traffic_;
};

/// A world of one rank: collectives end at once. What a program started without mpirun or srun uses.
ZEROSCHED_EXPORT std::shared_ptr<Communicator> self_communicator();

}  // namespace zerosched
