#include "comm/conformance.h"
#include "support/world.h"

#ifdef ZEROSCHED_TEST_MPI
#include "comm/mpi/mpi_backend.h"
#include "fakes/fake_runtime.h"

#include <vector>
#endif

namespace zerosched::testing {

namespace {

#ifdef ZEROSCHED_TEST_MPI
std::shared_ptr<Communicator> make(detail::MpiOptions options) {
  options.timeout_seconds = 20;
  int ranks = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  if (!options.host_of_rank.empty()) options.host_of_rank.resize(static_cast<size_t>(ranks));
  return detail::make_mpi_communicator(MPI_COMM_WORLD, options);
}

Backend mpi(const char* name, const detail::MpiOptions& options) {
  return {name, [options] { return make(options); }};
}

// As if ranks were on these hosts; tensors are in memory that those of a host share, if `windows`.
Backend on_hosts(const char* name, const std::vector<int>& host_of_rank, bool windows) {
  detail::MpiOptions options;
  options.host_of_rank = host_of_rank;
  options.shares_memory = windows;
  Backend backend = mpi(name, options);
  backend.host_of_rank = options.host_of_rank;
  backend.allocates = windows;
  return backend;
}

// CUDA tensors through pinned host memory, on a device of the tests.
Backend staged(const char* name, uint64_t seed) {
  auto* runtime = new FakeRuntime(1, seed);
  detail::MpiOptions options;
  options.runtime = runtime;
  Backend backend = mpi(name, options);
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
  detail::MpiOptions small;
  small.max_count = 24;
  small.message_bytes = 64;
  all.push_back(mpi("mpi_with_small_counts", small));
  detail::MpiOptions flat;
  flat.flat_collectives = true;
  all.push_back(mpi("mpi_flat", flat));
  all.push_back(on_hosts("mpi_one_host", {0, 0, 0, 0}, true));
  all.push_back(on_hosts("mpi_two_hosts_by_turns", {0, 1, 0, 1}, true));
  all.push_back(on_hosts("mpi_two_hosts_by_turns_without_windows", {0, 1, 0, 1}, false));
  all.push_back(on_hosts("mpi_unequal_hosts", {5, 5, 2, 5}, true));
  all.push_back(on_hosts("mpi_unequal_hosts_without_windows", {5, 5, 2, 5}, false));
  all.push_back(staged("mpi_staged", 0));
  all.push_back(staged("mpi_staged_in_random_order", 1));
#endif
  return all;
}

}  // namespace zerosched::testing
