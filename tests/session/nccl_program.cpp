// One rank of the jobs with NCCL that session_test.py starts, on the fake device: the last rank is killed, or stopped,
// or its program is stuck while the others wait for the device, whose kernels can be aborted or not; or rank 0 leaves
// main() with a collective in flight.
#include "comm/nccl/nccl_backend.h"
#include "fakes/fake_nccl.h"

#include <zerosched/session.h>

#include <ATen/ops/full.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

namespace {

/// Counts what threads ask the device.
class AskedRuntime final : public zerosched::testing::FakeRuntime {
 public:
  bool query(zerosched::device::Event event) override {
    ++asked;
    return FakeRuntime::query(event);
  }
  std::atomic<int> asked{0};
};

AskedRuntime* runtime = nullptr;

// Registered before there is a device, as CUDA's own end is: nobody may use it any more.
void at_end() {
  const int before = runtime->asked;
  std::this_thread::sleep_for(std::chrono::milliseconds(200));  // threads look every 50
  std::puts(
      runtime->asked == before && before > 0 ? "the device is left alone" : "the device is still asked");
}

int run(const std::string& mode, int argc, char** argv) {
  zerosched::Session session(argc, argv, zerosched::SessionOptions().timeout(2));
  std::atexit(at_end);
  runtime = new AskedRuntime;
  auto& fake = zerosched::testing::FakeNccl::instance();
  fake.reset(*runtime);
  zerosched::detail::NcclOptions options;
  options.timeout_seconds = mode == "left_behind" ? 60 : 2;
  options.abort_timeout_seconds = 3;
  options.api = &fake.api();
  options.runtime = runtime;
  auto communicator =
      zerosched::detail::make_nccl_communicator(*session.communicator(), std::nullopt, options);
  const auto gradients = runtime->to_device(at::full({100}, 1.0, at::kFloat));
  const auto step = [&](int64_t number) {
    communicator->all_reduce(gradients, zerosched::ReduceOp::sum, {"gradients", 0, number})->wait();
    communicator->barrier({"step", -1, number})->wait();
  };
  step(0);
  if (mode == "left_behind") {
    fake.script.collectives_hang = true;
    if (session.rank() == 0) communicator->all_reduce(gradients);
    try {
      const auto unwound = std::move(communicator);
      throw std::runtime_error("the others do not come");
    } catch (const std::runtime_error&) {
      return 0;  // the watching thread goes on, through MPI_Finalize and the end of main()
    }
  }
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
