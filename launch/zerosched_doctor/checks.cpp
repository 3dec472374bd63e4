#include "checks.h"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <map>
#include <set>

namespace doctor {

namespace {

constexpr int64_t kMiB = 1 << 20;
constexpr int64_t kGiB = int64_t{1} << 30;
constexpr int64_t kShmPerRank = 32 * kMiB;  // Open MPI's segments take a few MiB per rank and peer
constexpr double kShareOfStream = 0.8;      // of what a plain stream moves, below which something is wrong
constexpr int64_t kLarge = 8 * kMiB;        // what latency and bursts say nothing about
constexpr int64_t kLeastOpenFiles = 1024;   // each rank keeps connections to all others

using ByHost = std::map<std::string, std::vector<const Facts*>>;

ByHost by_host(const std::vector<Facts>& facts) {
  ByHost hosts;
  for (const auto& rank : facts) hosts[rank.host].push_back(&rank);
  return hosts;
}

std::string joined(const std::set<std::string>& words) {
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

std::string size_text(int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, bytes >= kGiB ? "%.1f GiB" : "%.0f MiB",
      static_cast<double>(bytes) / static_cast<double>(bytes >= kGiB ? kGiB : kMiB));
  return text;
}

std::string rate_text(double bytes_per_second) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3f GB/s", 1e-9 * bytes_per_second);
  return text;
}

/// The hosts of ranks for which `condition` holds.
std::set<std::string> hosts_where(
    const std::vector<Facts>& facts, const std::function<bool(const Facts&)>& condition) {
  std::set<std::string> hosts;
  for (const auto& rank : facts) {
    if (condition(rank)) hosts.insert(rank.host);
  }
  return hosts;
}

}  // namespace

std::vector<Finding> check_ranks(const std::vector<Facts>& facts) {
  const auto hosts = by_host(facts);
  std::string what = std::to_string(facts.size()) + (facts.size() == 1 ? " rank on " : " ranks on ") +
                     std::to_string(hosts.size()) +
                     (hosts.size() == 1 ? " host" : " hosts, and they reach each other");
  std::set<size_t> counts;
  for (const auto& [host, ranks] : hosts) counts.insert(ranks.size());
  if (counts.size() == 1) return {{"ranks", Level::ok, what, ""}};
  std::set<std::string> uneven;
  for (const auto& [host, ranks] : hosts) uneven.insert(host + ": " + std::to_string(ranks.size()));
  return {{"ranks", Level::warning, what + "; unevenly: " + joined(uneven),
      "Every step waits for the fullest host. Take launch/run --ranks-per-node, or sbatch "
      "--ntasks-per-node."}};
}

std::vector<Finding> check_versions(const std::vector<Facts>& facts) {
  struct Software {
    const char* name;
    std::string Facts::*version;
  };
  const std::vector<Software> all = {{"zerosched", &Facts::zerosched}, {"LibTorch", &Facts::libtorch},
      {"MPI", &Facts::mpi}, {"CUDA", &Facts::cuda}, {"NCCL", &Facts::nccl}};
  std::vector<Finding> findings;
  std::string same;
  for (const auto& [name, version] : all) {
    std::map<std::string, std::set<std::string>> hosts;
    for (const auto& rank : facts) hosts[rank.*version].insert(rank.host);
    if (hosts.size() == 1) {
      const auto& text = hosts.begin()->first;
      if (!text.empty()) same += (same.empty() ? "" : ", ") + std::string(name) + " " + text;
      continue;
    }
    std::string what = std::string(name) + " differs: ";
    for (const auto& [text, where] : hosts) {
      what += (what.back() == ' ' ? "" : "; ") + (text.empty() ? "none" : text) + " on " + joined(where);
    }
    findings.push_back({"versions", Level::problem, what,
        "Ranks must run the same software: install the same on every host, or use one folder that all hosts "
        "mount, and "
        "check LD_LIBRARY_PATH on each."});
  }
  if (findings.empty()) findings.push_back({"versions", Level::ok, same, ""});
  return findings;
}

std::vector<Finding> check_devices(const std::vector<Facts>& facts) {
  const auto without = hosts_where(facts, [](const Facts& rank) { return rank.gpus == 0; });
  const auto with = hosts_where(facts, [](const Facts& rank) { return rank.gpus > 0; });
  if (with.empty()) return {{"devices", Level::ok, "no GPUs; models live on the CPU", ""}};
  if (!without.empty()) {
    return {
        {"devices", Level::problem, "there are GPUs on " + joined(with) + ", but none on " + joined(without),
            "Ranks there cannot train on a GPU. Look at nvidia-smi and CUDA_VISIBLE_DEVICES on these hosts, "
            "and at what "
            "sbatch asked for (--gpus-per-node)."}};
  }
  std::set<std::string> crowded;
  for (const auto& [host, ranks] : by_host(facts)) {
    std::set<std::string> gpus;
    size_t users = 0;
    for (const auto* rank : ranks) {
      if (rank->gpu.empty()) continue;
      gpus.insert(rank->gpu);
      ++users;
    }
    if (users > gpus.size()) {
      crowded.insert(host + " (" + std::to_string(users) + " ranks on " + std::to_string(gpus.size()) +
                     (gpus.size() == 1 ? " GPU)" : " GPUs)"));
    }
  }
  if (!crowded.empty()) {
    return {{"devices", Level::warning, "ranks share GPUs on " + joined(crowded),
        "Ranks that share a GPU halve its speed, and NCCL refuses them: start one rank per GPU (launch/run "
        "--gpus), and look at CUDA_VISIBLE_DEVICES and at what sbatch asked for (--gpus-per-node) there."}};
  }
  const bool used =
      std::any_of(facts.begin(), facts.end(), [](const Facts& rank) { return rank.device != "cpu"; });
  if (!used) {
    return {{"devices", Level::warning, "there are GPUs on " + joined(with) + ", but models live on the CPU",
        "This zerosched was built without CUDA: build it with -DZEROSCHED_CUDA=ON and a CUDA build of "
        "LibTorch."}};
  }
  return {{"devices", Level::ok, "every rank has a GPU of its own", ""}};
}

std::vector<Finding> check_cores(const std::vector<Facts>& facts) {
  std::set<std::string> starved, shared;
  for (const auto& [host, ranks] : by_host(facts)) {
    std::map<int, int> users;
    for (const auto* rank : ranks) {
      if (static_cast<int>(rank->cores.size()) < rank->threads) {
        starved.insert("rank " + std::to_string(rank->rank) + " (" + std::to_string(rank->threads) +
                       " threads, " + std::to_string(rank->cores.size()) + " cores)");
      }
      for (const int core : rank->cores) ++users[core];
    }
    int threads = 0;
    for (const auto* rank : ranks) threads += rank->threads;
    if (threads > static_cast<int>(users.size())) {
      shared.insert(host + " (" + std::to_string(threads) + " threads of " + std::to_string(ranks.size()) +
                    " ranks, " + std::to_string(users.size()) + " cores)");
    }
  }
  const std::string advice =
      "Threads that share a core take turns: fewer --ranks-per-node or --threads for launch/run, or sbatch "
      "--cpus-per-task.";
  if (!starved.empty()) {
    return {{"cores", Level::warning, "more threads than cores they may use: " + joined(starved), advice}};
  }
  if (!shared.empty())
    return {{"cores", Level::warning, "more threads than cores on " + joined(shared), advice}};
  return {{"cores", Level::ok, "every thread has a core", ""}};
}

std::vector<Finding> check_limits(const std::vector<Facts>& facts) {
  std::vector<Finding> findings;
  const auto add = [&](const std::set<std::string>& hosts, const std::string& what,
                       const std::string& advice) {
    if (!hosts.empty()) findings.push_back({"limits", Level::warning, what + " on " + joined(hosts), advice});
  };
  add(hosts_where(
          facts, [](const Facts& rank) { return rank.open_files >= 0 && rank.open_files < kLeastOpenFiles; }),
      "fewer than " + std::to_string(kLeastOpenFiles) + " files may be open",
      "Connections to many ranks and data files count: raise `ulimit -n`.");
  add(hosts_where(facts, [](const Facts& rank) { return rank.address_space >= 0; }),
      "the address space is limited",
      "Allocations fail although memory is free, CUDA's above all: set `ulimit -v unlimited`.");
  add(hosts_where(facts, [](const Facts& rank) { return rank.infiniband && rank.locked_memory >= 0; }),
      "memory that may be locked is limited, and there is InfiniBand",
      "Its driver locks the buffers it sends: set `ulimit -l unlimited`, under Slurm for slurmd too.");
  if (findings.empty()) findings.push_back({"limits", Level::ok, "open files, memory", ""});
  return findings;
}

std::vector<Finding> check_shared_memory(
    const std::vector<Facts>& facts, const std::vector<std::string>& probes) {
  std::vector<Finding> findings;
  std::set<std::string> small;
  bool shared = false;
  for (const auto& [host, ranks] : by_host(facts)) {
    if (ranks.size() < 2) continue;
    shared = true;
    const auto free = ranks.front()->shm_bytes;
    if (free < kShmPerRank * static_cast<int64_t>(ranks.size()))
      small.insert(host + " (" + size_text(free) + " free)");
  }
  if (!shared) return {{"shared memory", Level::ok, "not used: no host has two ranks", ""}};
  if (!small.empty()) {
    findings.push_back({"shared memory", Level::problem,
        "/dev/shm is small for " + size_text(kShmPerRank) + " per rank on " + joined(small),
        "Ranks die with a bus error when it is full. Remove what is in it, or enlarge it: docker run "
        "--shm-size=1g, or "
        "`mount -o remount,size=50% /dev/shm`."});
  }
  std::set<std::string> refused;
  for (size_t rank = 0; rank < facts.size(); ++rank) {
    if (!probes[rank].empty()) refused.insert(facts[rank].host + " (" + probes[rank] + ")");
  }
  if (!refused.empty()) {
    findings.push_back(
        {"shared memory", Level::warning, "ranks may not read each other's memory on " + joined(refused),
            "Large messages are then copied twice. Allow cross-memory attach: docker run "
            "--cap-add=SYS_PTRACE, and "
            "kernel.yama.ptrace_scope=0."});
  }
  if (findings.empty())
    findings.push_back({"shared memory", Level::ok, "/dev/shm has room, cross-memory attach works", ""});
  return findings;
}

std::vector<Finding> check_network(const Stream& stream, const std::vector<Bandwidth>& bandwidth) {
  if (stream.from.empty()) return {};
  const std::string between = "a plain TCP stream between " + stream.from + " and " + stream.to;
  if (!stream.error.empty()) {
    return {{"network", Level::warning, between + " cannot be measured: " + stream.error,
        "MPI may know a way of its own; if ranks train, nothing is wrong."}};
  }
  std::string what =
      between + " (" + stream.address + ") moves " + rate_text(stream.bytes_per_second) + " each way";
  double least = 1;
  for (const auto& line : bandwidth) {
    if (line.bytes < kLarge || line.host_bytes_per_second == 0) continue;
    const double share = line.host_bytes_per_second / stream.bytes_per_second;
    char text[64];
    std::snprintf(text, sizeof text, ", %s of %lld MiB %.0f%% of it", line.collective.c_str(),
        static_cast<long long>(line.bytes / kMiB), 100 * share);
    what += text;
    least = std::min(least, share);
  }
  if (least >= kShareOfStream) return {{"network", Level::ok, what, ""}};
  return {{"network", Level::warning, what,
      "Collectives fall behind the network. Look for ranks that share cores (see cores), for an interface "
      "that MPI took "
      "and should not have (OMPI_MCA_btl_tcp_if_include names the right one), and for a setting of "
      "OMPI_MCA_btl_tcp_*."}};
}

std::vector<Finding> check_directory(
    const std::string& path, const std::vector<Facts>& facts, const std::vector<DirectoryUse>& uses) {
  if (path.empty()) {
    return {{"checkpoints", Level::ok, "not checked; name their folder with --checkpoint-dir", ""}};
  }
  const auto add = [&](std::map<std::string, std::set<std::string>>& errors, const std::string& error,
                       size_t rank) {
    if (!error.empty()) errors[error].insert(facts[rank].host);
  };
  std::map<std::string, std::set<std::string>> write_errors, read_errors;
  int64_t free = uses.front().free_bytes;
  double slowest = 0;
  for (size_t rank = 0; rank < uses.size(); ++rank) {
    add(write_errors, uses[rank].write_error, rank);
    add(read_errors, uses[rank].read_error, rank);
    free = std::min(free, uses[rank].free_bytes);
    slowest = std::max(slowest, uses[rank].seconds);
  }
  std::vector<Finding> findings;
  for (const auto& [error, hosts] : write_errors) {
    findings.push_back(
        {"checkpoints", Level::problem, path + " cannot be written on " + joined(hosts) + ": " + error,
            "Every rank writes its part there: the folder must exist, the job's user may write to it, and "
            "there must be room."});
  }
  for (const auto& [error, hosts] : read_errors) {
    findings.push_back({"checkpoints", Level::problem,
        "what rank 0 on " + facts.front().host + " writes to " + path + " is not seen on " + joined(hosts) +
            ": " + error,
        "Checkpoints need one folder that all hosts mount, such as NFS or Lustre; a folder of the same name "
        "on each "
        "host's own disk will not do."});
  }
  if (!findings.empty()) return findings;
  if (free < kGiB) {
    return {{"checkpoints", Level::warning, path + " has " + size_text(free) + " free",
        "A checkpoint takes about 12 bytes per parameter and the parameters themselves, and the previous one "
        "stays until "
        "it is complete."}};
  }
  const double rate = static_cast<double>(uses.front().written_bytes) / static_cast<double>(kMiB) *
                      static_cast<double>(uses.size()) / std::max(slowest, 1e-9);
  char what[64];
  std::snprintf(what, sizeof what, ", %.0f MiB/s with fsync", rate);
  return {{"checkpoints", Level::ok, path + " is shared; " + size_text(free) + " free" + what, ""}};
}

}  // namespace doctor
