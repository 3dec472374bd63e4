#include "support/gather.h"

#include <algorithm>

#ifdef ZEROSCHED_TEST_MPI

#include <mpi.h>

namespace zerosched::testing {

int world_rank() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

int world_size() {
  int size = 1;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}

std::vector<std::string> gather_texts(const std::string& text) {
  const int size = world_size();
  const int length = static_cast<int>(text.size());
  std::vector<int> lengths(static_cast<size_t>(size));
  MPI_Allgather(&length, 1, MPI_INT, lengths.data(), 1, MPI_INT, MPI_COMM_WORLD);
  std::vector<int> offsets(static_cast<size_t>(size));
  int total = 0;
  for (size_t i = 0; i < lengths.size(); ++i) {
    offsets[i] = total;
    total += lengths[i];
  }
  std::string all(static_cast<size_t>(total), '\0');
  MPI_Allgatherv(
      text.data(), length, MPI_CHAR, all.data(), lengths.data(), offsets.data(), MPI_CHAR, MPI_COMM_WORLD);
  std::vector<std::string> texts;
  for (size_t i = 0; i < lengths.size(); ++i) {
    texts.push_back(all.substr(static_cast<size_t>(offsets[i]), static_cast<size_t>(lengths[i])));
  }
  return texts;
}

void world_barrier() { MPI_Barrier(MPI_COMM_WORLD); }

bool threads_may_call_mpi() {
  int level = 0;
  MPI_Query_thread(&level);
  return level == MPI_THREAD_MULTIPLE;
}

}  // namespace zerosched::testing

#else

namespace zerosched::testing {

int world_rank() { return 0; }
int world_size() { return 1; }
std::vector<std::string> gather_texts(const std::string& text) { return {text}; }
void world_barrier() {}
bool threads_may_call_mpi() { return true; }

}  // namespace zerosched::testing

#endif

namespace zerosched::testing {

bool on_all_ranks(bool yes) {
  const auto texts = gather_texts(yes ? "yes" : "no");
  return std::all_of(texts.begin(), texts.end(), [](const std::string& text) { return text == "yes"; });
}

}  // namespace zerosched::testing
