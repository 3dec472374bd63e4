// What the doctor says of machines that are not at hand: other software, GPUs, InfiniBand, containers.

#include "checks.h"

#include <gtest/gtest.h>

namespace doctor {

namespace {

/// Two hosts with two ranks each, on which all is well.
std::vector<Facts> good_facts() {
  std::vector<Facts> facts(4);
  for (int rank = 0; rank < 4; ++rank) {
    auto& mine = facts[static_cast<size_t>(rank)];
    mine.rank = rank;
    mine.local_rank = rank % 2;
    mine.host = rank < 2 ? "a" : "b";
    mine.zerosched = "0.1.0 (build 12345678)";
    mine.libtorch = "2.11.0";
    mine.mpi = "Open MPI v4.1.4";
    mine.cuda = "13.0, driver for 13.0";
    mine.nccl = "2.28.9";
    mine.device = "cuda:" + std::to_string(rank % 2);
    mine.gpu = mine.host + mine.device;
    mine.gpus = 2;
    mine.threads = 1;
    mine.cores = {rank % 2};
    mine.open_files = 65536;
    mine.address_space = -1;
    mine.locked_memory = -1;
    mine.shm_bytes = int64_t{1} << 30;
  }
  return facts;
}

std::vector<Finding> all_findings(const std::vector<Facts>& facts) {
  std::vector<Finding> all;
  for (const auto& findings :
      {check_ranks(facts), check_versions(facts), check_devices(facts), check_cores(facts),
          check_limits(facts), check_shared_memory(facts, std::vector<std::string>(facts.size()))}) {
    all.insert(all.end(), findings.begin(), findings.end());
  }
  return all;
}

/// The one finding that is not ok.
Finding only_complaint(const std::vector<Facts>& facts) {
  Finding complaint;
  int count = 0;
  for (const auto& finding : all_findings(facts)) {
    if (finding.level == Level::ok) continue;
    complaint = finding;
    ++count;
  }
  EXPECT_EQ(count, 1);
  EXPECT_FALSE(complaint.advice.empty());
  return complaint;
}

void expect_complaint(
    const Finding& finding, const std::string& check, Level level, const std::string& text) {
  EXPECT_EQ(finding.check, check);
  EXPECT_EQ(finding.level, level);
  EXPECT_NE(finding.what.find(text), std::string::npos) << finding.what;
}

}  // namespace

TEST(DoctorChecks, AllIsWell) {
  for (const auto& finding : all_findings(good_facts())) EXPECT_EQ(finding.level, Level::ok) << finding.what;
}

TEST(DoctorChecks, EverySoftwareThatDiffersIsAProblem) {
  const std::vector<std::pair<std::string, std::string Facts::*>> all = {{"zerosched", &Facts::zerosched},
      {"LibTorch", &Facts::libtorch}, {"MPI", &Facts::mpi}, {"CUDA", &Facts::cuda}, {"NCCL", &Facts::nccl}};
  for (const auto& [name, version] : all) {
    auto facts = good_facts();
    facts[3].*version = "other";
    expect_complaint(only_complaint(facts), "versions", Level::problem, name + " differs");
    EXPECT_NE(only_complaint(facts).what.find("other on b"), std::string::npos);
  }
}

TEST(DoctorChecks, SoftwareThatIsNotThereIsNoted) {
  auto facts = good_facts();
  facts[0].nccl = facts[1].nccl = "";
  expect_complaint(only_complaint(facts), "versions", Level::problem, "none on a; 2.28.9 on b");
}

TEST(DoctorChecks, UnevenHosts) {
  auto facts = good_facts();
  facts.pop_back();
  expect_complaint(only_complaint(facts), "ranks", Level::warning, "a: 2, b: 1");
}

TEST(DoctorChecks, Devices) {
  auto facts = good_facts();
  facts[2].gpus = facts[3].gpus = 0;
  expect_complaint(only_complaint(facts), "devices", Level::problem, "none on b");

  facts = good_facts();
  facts.push_back(facts[3]);
  facts.push_back(facts[1]);  // three ranks on each host
  facts[4].cores = facts[5].cores = {2};
  expect_complaint(
      only_complaint(facts), "devices", Level::warning, "a (3 ranks on 2 GPUs), b (3 ranks on 2 GPUs)");

  facts = good_facts();
  for (auto& rank : facts) {
    rank.device = "cpu";
    rank.gpu = "";
  }
  expect_complaint(only_complaint(facts), "devices", Level::warning, "models live on the CPU");

  for (auto& rank : facts) rank.gpus = 0;
  EXPECT_EQ(check_devices(facts).front().level, Level::ok);
}

TEST(DoctorChecks, WhetherARankHasAGpuOfItsOwnIsNotAMatterOfItsNumber) {
  auto facts = good_facts();
  for (auto& rank : facts) {  // as Slurm shows each task its own
    rank.gpus = 1;
    rank.device = "cuda:0";
  }
  EXPECT_EQ(check_devices(facts).front().level, Level::ok);
  facts[3].gpu = facts[2].gpu;  // as it shows them the same
  expect_complaint(only_complaint(facts), "devices", Level::warning, "share GPUs on b (2 ranks on 1 GPU)");

  facts = good_facts();
  facts[1].gpu = facts[0].gpu;
  expect_complaint(only_complaint(facts), "devices", Level::warning, "share GPUs on a (2 ranks on 1 GPU)");
}

TEST(DoctorChecks, Cores) {
  auto facts = good_facts();
  facts[1].threads = 2;
  expect_complaint(only_complaint(facts), "cores", Level::warning, "rank 1 (2 threads, 1 cores)");
  facts = good_facts();
  facts[3].cores = {0};
  expect_complaint(only_complaint(facts), "cores", Level::warning, "b (2 threads of 2 ranks, 1 cores)");
}

TEST(DoctorChecks, Limits) {
  auto facts = good_facts();
  facts[0].open_files = 256;
  expect_complaint(only_complaint(facts), "limits", Level::warning, "on a");
  facts = good_facts();
  facts[2].address_space = int64_t{1} << 34;
  expect_complaint(only_complaint(facts), "limits", Level::warning, "address space");
  facts = good_facts();
  facts[2].locked_memory = 65536;
  EXPECT_EQ(check_limits(facts).front().level, Level::ok);  // no matter without InfiniBand
  facts[2].infiniband = true;
  expect_complaint(only_complaint(facts), "limits", Level::warning, "InfiniBand");
}

TEST(DoctorChecks, SharedMemory) {
  auto facts = good_facts();
  facts[2].shm_bytes = 16 << 20;
  expect_complaint(only_complaint(facts), "shared memory", Level::problem, "b (16 MiB free)");
  const auto refused = check_shared_memory(good_facts(), {"", "", "Operation not permitted", ""}).front();
  expect_complaint(refused, "shared memory", Level::warning, "b (Operation not permitted)");
  facts = {good_facts()[0], good_facts()[2]};
  facts[0].shm_bytes = 0;
  EXPECT_EQ(check_shared_memory(facts, {"", ""}).front().level, Level::ok);  // alone on its host
}

TEST(DoctorChecks, Network) {
  Stream stream{"a", "b", "", "10.0.0.1", 1.0e9};
  EXPECT_TRUE(check_network({}, {{"all_gather", 64 << 20, 1, 1, 0}}).empty());  // on one host
  const Bandwidth good{"all_gather", 64 << 20, 0.07, 0.9e9, 0.95e9};
  const Bandwidth slow{"reduce_scatter", 64 << 20, 0.14, 0.4e9, 0.5e9};
  const Bandwidth small{"reduce_scatter", 1000, 0.01, 1e5, 1e5};  // is a matter of latency
  auto found = check_network(stream, {good, small}).front();
  EXPECT_EQ(found.level, Level::ok);
  EXPECT_EQ(found.what,
      "a plain TCP stream between a and b (10.0.0.1) moves 1.000 GB/s each way, all_gather of 64 MiB 95% of "
      "it");
  found = check_network(stream, {good, slow}).front();
  EXPECT_EQ(found.level, Level::warning);
  EXPECT_NE(found.what.find("reduce_scatter of 64 MiB 50% of it"), std::string::npos) << found.what;
  EXPECT_NE(found.advice.find("btl_tcp_if_include"), std::string::npos);
  stream.error = "none of its addresses answers";
  found = check_network(stream, {good}).front();
  EXPECT_EQ(found.level, Level::warning);
  EXPECT_NE(found.what.find(stream.error), std::string::npos);
}

TEST(DoctorChecks, Directory) {
  const auto facts = good_facts();
  DirectoryUse good;
  good.free_bytes = int64_t{100} << 30;
  good.seconds = 0.1;
  good.written_bytes = 16 << 20;
  const std::vector<DirectoryUse> uses(4, good);
  EXPECT_EQ(check_directory("", facts, {}).front().level, Level::ok);
  const auto fine = check_directory("/data", facts, uses);
  EXPECT_EQ(fine.front().level, Level::ok);
  EXPECT_NE(fine.front().what.find("640 MiB/s"), std::string::npos) << fine.front().what;

  auto unseen = uses;
  unseen[2].read_error = unseen[3].read_error = "No such file or directory";
  ASSERT_EQ(check_directory("/data", facts, unseen).size(), 1U);
  expect_complaint(
      check_directory("/data", facts, unseen).front(), "checkpoints", Level::problem, "not seen on b");

  auto refused = uses;
  refused[1].write_error = "open: Permission denied";
  expect_complaint(check_directory("/data", facts, refused).front(), "checkpoints", Level::problem,
      "cannot be written on a");

  auto full = uses;
  full[3].free_bytes = 100 << 20;
  expect_complaint(
      check_directory("/data", facts, full).front(), "checkpoints", Level::warning, "100 MiB free");
}

}  // namespace doctor
