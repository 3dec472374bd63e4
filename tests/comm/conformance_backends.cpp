#include "comm/conformance.h"
#include "support/world.h"

#ifdef ZEROSCHED_TEST_MPI
#include "comm/mpi/mpi_backend.h"
#include "device/fake_runtime.h"
#endif

namespace zerosched::testing {

namespace {

#ifdef ZEROSCHED_TEST_MPI
std::shared_ptr<Communicator> make(int64_t max_count, int64_t chunk_bytes, device::Runtime* runtime) {
  detail::MpiOptions options;
  options.timeout_seconds = 20;
  options.max_count = max_count;
  options.chunk_bytes = chunk_bytes;
  options.runtime = runtime;
  return detail::make_mpi_communicator(MPI_COMM_WORLD, options);
}

// CUDA tensors through pinned host memory, on a device of the tests.
Backend staged(const char* name, uint64_t seed) {
  auto* runtime = new FakeRuntime(1, seed);
  Backend backend{name, [runtime] { return make(int64_t{1} << 30, int64_t{256} << 10, runtime); }};
  backend.device = at::Device(at::kCUDA, 0);
  backend.to_device = [runtime](const at::Tensor& tensor) { return runtime->to_device(tensor); };
  backend.to_host = [runtime](const at::Tensor& tensor) { return runtime->to_host(tensor); };
  return backend;
}
#endif

}  // namespace

std::string why_skip_conformance(const Backend&) { return {}; }

std::vector<Backend> conformance_backends() {
  std::vector<Backend> all{{"self", [] { return self_communicator(); }}};
  all.push_back({"world", [] { return world(); }});
  all.push_back({"duplicate", [] { return world()->duplicate(); }});
#ifdef ZEROSCHED_TEST_MPI
  // Every tensor of more than a few bytes takes the path of tensors beyond 2^31 bytes.
  all.push_back({"mpi_with_small_counts", [] { return make(24, 64, nullptr); }});
  all.push_back(staged("mpi_staged", 0));
  all.push_back(staged("mpi_staged_in_random_order", 1));
#endif
  return all;
}

}  // namespace zerosched::testing
