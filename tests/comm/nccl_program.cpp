// One rank of the jobs with NCCL that session_test.py starts, on the fake device: the last rank is killed, or stopped,
// or its program is stuck while the others wait for the device, whose kernels can be aborted or not.
#include "comm/fake_nccl.h"
#include "comm/nccl/nccl_backend.h"

#include <zerosched/session.h>

#include <ATen/ops/full.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <string>
#include <thread>

namespace {

int run(const std::string& mode, int argc, char** argv) {
  zerosched::Session session(argc, argv, zerosched::SessionOptions().timeout(2));
  auto* runtime = new zerosched::testing::FakeRuntime;
  auto& fake = zerosched::testing::FakeNccl::instance();
  fake.reset(*runtime);
  zerosched::detail::NcclOptions options;
  options.timeout_seconds = 2;
  options.abort_timeout_seconds = 3;
  options.api = &fake.api();
  options.runtime = runtime;
  const auto communicator =
      zerosched::detail::make_nccl_communicator(*session.communicator(), std::nullopt, options);
  const auto gradients = runtime->to_device(at::full({100}, 1.0, at::kFloat));
  const auto step = [&](int64_t number) {
    communicator->all_reduce(gradients, zerosched::ReduceOp::sum, {"gradients", 0, number})->wait();
    communicator->barrier({"step", -1, number})->wait();
  };
  step(0);
  if (mode == "stuck" || mode == "unabortable") {
    fake.script.kernels_ignore_aborts = mode == "unabortable";
    if (session.rank() == session.world_size() - 1) std::this_thread::sleep_for(std::chrono::seconds(12));
    communicator->all_reduce(gradients, zerosched::ReduceOp::sum, {"gradients", 0, 1})->wait();
    runtime->synchronize(runtime->current_stream(0));  // as .item() does: without a look at the communicator
    communicator->barrier();
  }
  if (session.rank() == session.world_size() - 1) raise(mode == "killed" ? SIGKILL : SIGSTOP);
  step(1);
  std::puts("went on without a rank");
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return run(argc > 1 ? argv[1] : "", argc, argv); }
