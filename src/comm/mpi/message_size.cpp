#include "comm/mpi/message_size.h"

#include "comm/mpi/check.h"

#include <algorithm>

namespace zerosched::detail {

namespace {

// MPI's own header comes out of its limit.
constexpr int64_t kHeaderRoom = 256;
constexpr int64_t kUsual = int64_t{64} << 10;
// A copy from another process's memory: long enough that its beginning does not matter, short enough for the cache.
constexpr int64_t kOnOneHost = int64_t{256} << 10;
constexpr int64_t kLeast = int64_t{4} << 10, kMost = int64_t{256} << 10;

// A control variable of the MPI tool interface; -1 where there is none of that name and type.
int64_t control_variable(const char* name) {
  int64_t found = -1;
  int level = 0;
  if (MPI_T_init_thread(MPI_THREAD_SINGLE, &level) != MPI_SUCCESS) return found;
  int index = 0;
  MPI_T_cvar_handle handle{};
  int count = 0;
  if (MPI_T_cvar_get_index(name, &index) == MPI_SUCCESS &&
      MPI_T_cvar_handle_alloc(index, nullptr, &handle, &count) == MPI_SUCCESS) {
    unsigned long value = 0;  // NOLINT(google-runtime-int): the type that Open MPI gives its sizes
    if (count == 1 && MPI_T_cvar_read(handle, &value) == MPI_SUCCESS) found = static_cast<int64_t>(value);
    MPI_T_cvar_handle_free(&handle);
  }
  MPI_T_finalize();
  return found;
}

}  // namespace

int64_t choose_message_bytes(MPI_Comm comm, bool on_one_host) {
  if (on_one_host) return kOnOneHost;
  // Once in a process: Open MPI takes a fifth of a second to open its tool interface.
  static const int64_t limit = control_variable("btl_tcp_eager_limit");
  const int64_t own = std::clamp(limit < 0 ? kUsual : limit, kLeast, kMost) - kHeaderRoom;
  int64_t lowest = 0;
  ZEROSCHED_MPI_CALL(MPI_Allreduce, &own, &lowest, 1, MPI_INT64_T, MPI_MIN, comm);
  return lowest;
}

}  // namespace zerosched::detail
