#include <zerosched/stop_signal.h>

#include "base/check.h"

#include <ATen/ops/empty.h>

#include <csignal>

#include <array>
#include <atomic>

namespace zerosched {

namespace {

constexpr std::array<int, 2> kSignals = {SIGUSR1, SIGTERM};

std::atomic<bool> exists{false};
volatile std::sig_atomic_t received = 0;
std::array<struct sigaction, kSignals.size()> previous;

void on_signal(int) { received = 1; }

}  // namespace

StopSignal::StopSignal() {
  ZEROSCHED_CHECK(
      !exists.exchange(true), "stop signal: there is one already; at most one may exist at a time");
  received = 0;
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;  // nobody's reads and writes fail because of it
  for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &action, &previous[i]);
}

StopSignal::~StopSignal() {
  for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &previous[i], nullptr);
  exists = false;
}

bool StopSignal::requested(Communicator& communicator) const {
  const at::Tensor flag = at::empty({1}, at::kByte);
  *flag.mutable_data_ptr<uint8_t>() = received != 0 ? 1 : 0;
  communicator.all_reduce(flag, ReduceOp::max, {"stop signal"})->wait();
  return *flag.const_data_ptr<uint8_t>() != 0;
}

}  // namespace zerosched
