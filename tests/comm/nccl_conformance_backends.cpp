// The NCCL communicator over the fake NCCL on a fake device.
#include "comm/conformance.h"
#include "comm/nccl/nccl_backend.h"
#include "fakes/fake_nccl.h"
#include "support/world.h"

#include <gtest/gtest.h>

namespace zerosched::testing {

namespace {

enum class Library { newest, without_windows };

Backend nccl(const char* name, uint64_t seed, Library library) {
  auto* runtime = new FakeRuntime(1, seed);
  auto& fake = FakeNccl::instance();
  const auto* api = new detail::NcclApi(library == Library::newest ? fake.api() : fake.old_api());
  Backend backend{name, [=] {
                    FakeNccl::instance().reset(*runtime);
                    detail::NcclOptions options;
                    options.timeout_seconds = 20;
                    options.watch_seconds = 0.005;
                    options.api = api;
                    options.runtime = runtime;
                    return detail::make_nccl_communicator(*world(), std::nullopt, options);
                  }};
  backend.device = at::Device(at::kCUDA, 0);
  backend.to_device = [runtime](const at::Tensor& tensor) { return runtime->to_device(tensor); };
  backend.to_host = [runtime](const at::Tensor& tensor) { return runtime->to_host(tensor); };
  backend.check_nothing_left = [runtime] {
    const auto& left = FakeNccl::instance();
    EXPECT_EQ(left.misuse(), "");
    EXPECT_EQ(left.live_comms, 0);
    EXPECT_EQ(left.live_windows, 0);
    EXPECT_EQ(left.live_allocations, 0);
    EXPECT_EQ(runtime->live_events(), 0);
    EXPECT_EQ(runtime->live_streams(), 1);  // the current one
  };
  return backend;
}

}  // namespace

std::string why_skip_conformance(const Backend&) { return {}; }

std::vector<Backend> conformance_backends() {
  return {nccl("nccl", 0, Library::newest), nccl("nccl_in_random_order", 1, Library::newest),
      nccl("nccl_without_windows", 2, Library::without_windows)};
}

}  // namespace zerosched::testing
