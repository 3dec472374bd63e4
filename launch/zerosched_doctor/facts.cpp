#include "facts.h"

#include <zerosched/device_identity.h>
#include <zerosched/session.h>

#include <ATen/Parallel.h>
#include <ATen/Version.h>

#include <mpi.h>

#include <dlfcn.h>
#include <glob.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>

namespace doctor {

namespace {

constexpr uint64_t kProbeWord = 0x7a65726f73636864;
uint64_t probe_word = kProbeWord;

std::string host_name() {
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  return name.data();
}

/// Two builds of one version are not the same library.
std::string checksum_of_library() {
  Dl_info info{};
  const auto* symbol = reinterpret_cast<const void*>(&zerosched::self_communicator);
  if (dladdr(symbol, &info) == 0 || info.dli_fname == nullptr) return "unknown";
  std::ifstream file(info.dli_fname, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  std::array<char, 17> text{};
  std::snprintf(text.data(), text.size(), "%016zx", std::hash<std::string>{}(bytes));
  return std::string(text.data()).substr(0, 8);
}

/// Of the library that is loaded, not of the headers that this was compiled with.
std::string libtorch_version() {
  constexpr const char* kKey = "TORCH_VERSION=";
  const std::string config = at::show_config();
  const size_t key = config.find(kKey);
  if (key == std::string::npos) return "unknown";
  const size_t begin = key + std::char_traits<char>::length(kKey);
  return config.substr(begin, config.find_first_of(", \n", begin) - begin);
}

std::string mpi_version() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  MPI_Get_library_version(text.data(), &length);
  const std::string version(text.data());
  return version.substr(0, version.find_first_of(",\n"));  // Open MPI goes on with who built it
}

/// Calls `int name(int*)` of a library that the process has loaded; -1 if none has it or it fails. Whether
/// CUDA and NCCL are there is a matter of what this zerosched was built with, and no matter of headers.
int value_from(const char* name) {
  using Function = int (*)(int*);
  const auto function = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
  int value = 0;
  return function != nullptr && function(&value) == 0 ? value : -1;
}

std::string cuda_version() {
  const int runtime = value_from("cudaRuntimeGetVersion");
  if (runtime < 0) return "";
  const auto dotted = [](int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  };
  const int driver = value_from("cudaDriverGetVersion");
  return dotted(runtime) + (driver > 0 ? " with a driver for " + dotted(driver) : " without a driver");
}

std::string nccl_version() {
  const int version = value_from("ncclGetVersion");
  if (version < 0) return "";
  return std::to_string(version / 10000) + "." + std::to_string(version % 10000 / 100) + "." +
         std::to_string(version % 100);
}

/// GPUs that CUDA shows this process, or that the driver has where no CUDA is loaded.
int gpu_count() {
  const int visible = value_from("cudaGetDeviceCount");
  if (visible >= 0) return visible;
  glob_t found{};
  const int count = glob("/dev/nvidia[0-9]*", 0, nullptr, &found) == 0 ? static_cast<int>(found.gl_pathc) : 0;
  globfree(&found);
  return count;
}

std::vector<int> usable_cores() {
  std::vector<int> cores;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return cores;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  }
  return cores;
}

int64_t limit_of(__rlimit_resource resource) {
  rlimit limit{};
  if (getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return -1;
  return static_cast<int64_t>(limit.rlim_cur);
}

int64_t free_shm_bytes() {
  struct statvfs status {};
  if (statvfs("/dev/shm", &status) != 0) return 0;
  return static_cast<int64_t>(status.f_bavail) * static_cast<int64_t>(status.f_frsize);
}

}  // namespace

Facts collect_facts(const zerosched::Session& session) {
  Facts facts;
  facts.rank = session.rank();
  facts.local_rank = session.local_rank();
  facts.host = host_name();
  facts.zerosched = std::string(ZEROSCHED_VERSION) + " (build " + checksum_of_library() + ")";
  facts.libtorch = libtorch_version();
  facts.mpi = mpi_version();
  facts.cuda = cuda_version();
  facts.nccl = nccl_version();
  facts.device = session.device().str();
  facts.gpu = zerosched::device_identity(session.device());
  facts.gpus = gpu_count();
  facts.threads = at::get_num_threads();
  facts.cores = usable_cores();
  facts.open_files = limit_of(RLIMIT_NOFILE);
  facts.address_space = limit_of(RLIMIT_AS);
  facts.locked_memory = limit_of(RLIMIT_MEMLOCK);
  facts.infiniband = access("/dev/infiniband", F_OK) == 0;
  facts.shm_bytes = free_shm_bytes();
  facts.pid = getpid();
  facts.probe = reinterpret_cast<uint64_t>(&probe_word);
  return facts;
}

std::string read_probe(const Facts& of) {
  uint64_t word = 0;
  iovec to{&word, sizeof word};
  // NOLINTNEXTLINE(performance-no-int-to-ptr): an address of another process
  iovec from{reinterpret_cast<void*>(of.probe), sizeof word};
  const ssize_t bytes = process_vm_readv(static_cast<pid_t>(of.pid), &to, 1, &from, 1, 0);
  if (bytes < 0) return std::strerror(errno);
  return word == kProbeWord ? "" : "process " + std::to_string(of.pid) + " is not the other rank's";
}

}  // namespace doctor
