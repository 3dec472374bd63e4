#pragma once

#include <zerosched/communicator.h>

#include <c10/core/Device.h>
#include <torch/arg.h>

#include <memory>
#include <optional>

namespace zerosched {

/// How a communicator over NCCL behaves; the same on every rank.
struct ZEROSCHED_EXPORT NcclCommunicatorOptions {
  /// Seconds after which a collective that does not end is given up, on every rank, and so is joining. Must be
  /// positive.
  TORCH_ARG(double, timeout) = 600;
  /// Seconds that the GPU has, once the communicator has given up and was aborted, to end what is in flight on it.
  /// Then the process ends with exit code 70 and says on stderr why: NCCL has kernels that cannot be aborted, and
  /// whoever waits for the GPU could not be told of the failure. A GPU that is seconds behind the host takes its time
  /// too. Must be positive.
  TORCH_ARG(double, abort_timeout) = 30;
  /// Whether allocate() gives memory that all GPUs of a node reach (symmetric windows, NCCL 2.27 or newer), for which
  /// NCCL has kernels of its own: faster over NVLink, with fewer multiprocessors, but these cannot be aborted.
  /// NCCL_WIN_ENABLE=0 in the environment makes NCCL take its other kernels without a change to the program.
  TORCH_ARG(bool, symmetric_memory) = true;
  /// Whether a GPU that does not end in time ends the process. If not, a warning says what the GPU is stuck in.
  TORCH_ARG(bool, end_process) = true;
};

/// A communicator over NCCL for CUDA tensors of one GPU per rank. Collective over `bootstrap`, which connects
/// the same ranks and stays the caller's: an MPI communicator, or self_communicator() for a world of one.
///
/// `device` is the rank's GPU; by default the one of its position on the node. NCCL (2.14 or newer) is loaded
/// when the first such communicator is made, and LibTorch's own is taken where there is one.
///
/// What differs from other backends:
/// - Collectives run on a high-priority stream of the communicator's own. A launch is ordered after what the
///   current stream holds by then, Work::wait() makes the current stream wait, and the host waits for
///   neither; except for a barrier's wait(), which blocks the host until all ranks have come and their
///   collectives are through. Work::done() asks the device.
/// - Sums are NCCL's: in the dtype of the tensors, 16-bit types too, in an order that depends on the
///   topology. Pass float32 tensors to sum gradients without rounding in between.
/// - allocate() registers memory of NCCL's own as symmetric windows (NCCL 2.27 or newer) where every rank
///   can, and the options ask for it. It goes once the streams have done with it that launched collectives with it,
///   waited for those, or were current when it was allocated or dropped; what reads it in yet another one must be
///   through before.
/// - CPU tensors are carried by a duplicate of `bootstrap`.
/// - All ranks must launch on their NCCL communicators in one order, also across communicators: kernels of
///   one wait for other ranks while they hold the GPU.
/// - The first collectives of a kind connect the ranks, and block the host for that. Later launches do not.
/// - duplicate() splits NCCL's communicator where it can (NCCL 2.18 or newer).
///
/// A failure of any rank, an error that NCCL reports and a collective that takes longer than
/// the timeout are noticed by a thread that looks 20 times a second; it aborts NCCL's communicator, and
/// every rank throws one message. NCCL itself would wait for ever for a rank that does not come or that is in
/// another collective; the message says which.
///
/// Destroy it, its works and the tensors that it has allocated before `bootstrap`'s transport is finalised
/// and before main() returns. The destructor waits for collectives in flight, at most as long as the timeout; a second
/// only if the communicator has failed or an exception unwinds.
///
/// Throws an Error on every rank if any of them has no GPU, no NCCL or an NCCL that is too old, if two
/// ranks share a GPU, or if the ranks cannot connect within the timeout; and where zerosched was built
/// without CUDA.
ZEROSCHED_EXPORT std::shared_ptr<Communicator> nccl_communicator(
    const std::shared_ptr<Communicator>& bootstrap, std::optional<at::Device> device,
    const NcclCommunicatorOptions& options);

/// The same with default options but for the timeout, in seconds.
ZEROSCHED_EXPORT std::shared_ptr<Communicator> nccl_communicator(
    const std::shared_ptr<Communicator>& bootstrap, std::optional<at::Device> device = std::nullopt,
    double timeout_seconds = 600);

}  // namespace zerosched
