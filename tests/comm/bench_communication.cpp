// How long collectives take through the library and through MPI's own calls, alternating in one run:
//   mpirun -n 2 comm_bench_communication [MiB, default 64] [repetitions, default 15]
// Prints median and minimum milliseconds.
#include <zerosched/mpi_communicator.h>

#include <ATen/ops/full.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

namespace {

double milliseconds(const std::function<void()>& call) {
  MPI_Barrier(MPI_COMM_WORLD);
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

struct Contender {
  const char* name;
  std::function<void()> call;
  std::vector<double> times{};
};

void run(std::vector<Contender> contenders, int repetitions, bool print) {
  for (int i = 0; i < repetitions + 1; ++i) {
    for (auto& contender : contenders) {
      const double time = milliseconds(contender.call);
      if (i > 0) contender.times.push_back(time);  // the first round touches memory
    }
  }
  for (auto& contender : contenders) {
    std::sort(contender.times.begin(), contender.times.end());
    if (print) {
      std::printf("%-34s median %10.4f ms   min %10.4f ms\n", contender.name,
          contender.times[contender.times.size() / 2], contender.times.front());
    }
  }
}

void benchmark(int mib, int repetitions) {
  const auto communicator = zerosched::mpi_communicator(MPI_COMM_WORLD);
  const int size = communicator->size();
  const bool print = communicator->rank() == 0;
  const int slice = mib * (1 << 18) / size;
  auto flat = communicator->allocate(int64_t{slice} * size, at::kFloat, at::kCPU);
  auto shard = communicator->allocate(slice, at::kFloat, at::kCPU);
  flat.fill_(0.5);
  shard.fill_(0.0);
  auto* data = static_cast<float*>(flat.data_ptr());
  auto* out = static_cast<float*>(shard.data_ptr());
  if (print) std::printf("%d ranks, %d MiB of float32\n", size, mib);
  run({{"zerosched reduce_scatter", [&] { communicator->reduce_scatter(flat, shard, {"bench"})->wait(); }},
          {"MPI_Reduce_scatter_block",
              [&] { MPI_Reduce_scatter_block(data, out, slice, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD); }},
          {"MPI_Ireduce_scatter_block",
              [&] {
                MPI_Request request = MPI_REQUEST_NULL;
                MPI_Ireduce_scatter_block(data, out, slice, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD, &request);
                MPI_Wait(&request, MPI_STATUS_IGNORE);
              }},
          {"MPI_Allreduce",
              [&] { MPI_Allreduce(MPI_IN_PLACE, data, slice * size, MPI_FLOAT, MPI_MAX, MPI_COMM_WORLD); }},
          {"zerosched all_gather", [&] { communicator->all_gather(flat, {"bench"})->wait(); }},
          {"MPI_Allgather",
              [&] { MPI_Allgather(MPI_IN_PLACE, 0, MPI_FLOAT, data, slice, MPI_FLOAT, MPI_COMM_WORLD); }}},
      repetitions, print);
  auto scalar = at::full({1}, 1.0, at::kFloat);
  run({{"zerosched all_reduce of 4 bytes", [&] { communicator->all_reduce(scalar)->wait(); }},
          {"MPI_Allreduce of 4 bytes",
              [&] {
                MPI_Allreduce(MPI_IN_PLACE, scalar.data_ptr(), 1, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
              }}},
      50 * repetitions, print);
}

}  // namespace

int main(int argc, char** argv) {
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
  benchmark(argc > 1 ? std::atoi(argv[1]) : 64, argc > 2 ? std::atoi(argv[2]) : 15);
  MPI_Finalize();
  return 0;
}
