// Whose turn it is in a folder: processes that run, have ended, or are on another machine.
#include "io/folder_lock.h"
#include "io/in_a_folder.h"

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <thread>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

namespace zerosched::detail {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using testing::expect_message;
using testing::Names;

class Lock : public testing::InAFolder {};

/// A process that locks `folder` and then waits to be killed.
pid_t locked_by_a_child(const std::string& folder) {
  int ready[2];
  if (::pipe(ready) != 0) std::abort();
  const pid_t child = ::fork();
  if (child == 0) {
    ::setenv("SLURM_JOB_ID", "4242", 1);
    const FolderLock lock(folder);
    if (::write(ready[1], "x", 1) != 1) std::_Exit(1);
    for (;;) ::pause();
  }
  char byte = 0;
  EXPECT_EQ(::read(ready[0], &byte, 1), 1);
  ::close(ready[0]);
  ::close(ready[1]);
  return child;
}

void end(pid_t child) {
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
}

LockTimes quick() { return {20ms, 300ms, 300ms, 400ms, 100ms}; }

TEST_F(Lock, NamesTheOtherJob) {
  const pid_t child = locked_by_a_child(root);
  std::string notice;
  expect_message(
      [&] {
        FolderLock(
            root, [&](const std::string& what) { notice = what; }, quick());
      },
      {root, "process " + std::to_string(child), JobIdentity::own().host, "Slurm job 4242", "since 20", "UTC",
          "folder of its own", root + "/.zerosched.lock"});
  EXPECT_NE(notice.find("waiting, since process " + std::to_string(child)), std::string::npos) << notice;
  // A killed job's lock is nobody's.
  end(child);
  {
    const FolderLock lock(root, {}, quick());
    lock.check_held();
    EXPECT_EQ(names(), Names({".zerosched.lock"}));
  }
  EXPECT_EQ(names(), Names());
}

TEST_F(Lock, IsWaitedFor) {
  auto first = std::make_unique<FolderLock>(root);
  std::thread other([&] { const FolderLock second(root); });
  std::this_thread::sleep_for(100ms);
  first->check_held();
  first.reset();
  other.join();
  EXPECT_EQ(names(), Names());
}

std::string lock_of_another_machine() {
  JobIdentity process = JobIdentity::own();
  process.host = "node7";
  process.place = "another boot";
  return nlohmann::json{{"process", to_json(process)}, {"token", "0"}, {"since", 1700000000}}.dump();
}

TEST_F(Lock, OfAnotherMachine) {
  // Nobody touches it.
  put(".zerosched.lock", lock_of_another_machine());
  { const FolderLock lock(root, {}, quick()); }
  EXPECT_EQ(names(), Names());
  // Somebody does.
  put(".zerosched.lock", lock_of_another_machine());
  std::atomic<bool> done{false};
  std::thread owner([&] {
    while (!done) {
      ::utimensat(AT_FDCWD, at(".zerosched.lock").c_str(), nullptr, 0);
      std::this_thread::sleep_for(20ms);
    }
  });
  LockTimes times = quick();
  times.silence = 1500ms;  // many times what it takes to be touched on a busy machine
  times.patience = 3000ms;
  expect_message([&] { FolderLock(root, {}, times); }, {"host node7", "2023-11-14 22:13:20 UTC"});
  done = true;
  owner.join();
}

// As when a file server does not answer for a while: then the owner could not touch it either.
TEST_F(Lock, IsNotTakenOverAfterOneLongLook) {
  put(".zerosched.lock", lock_of_another_machine());
  LockTimes times = quick();
  times.silence = 4000ms;
  times.patience = 60000ms;
  const pid_t child = ::fork();
  if (child == 0) {
    const FolderLock lock(root, {}, times);
    for (;;) ::pause();
  }
  std::this_thread::sleep_for(200ms);
  ::kill(child, SIGSTOP);
  std::this_thread::sleep_for(4500ms);
  ::kill(child, SIGCONT);
  std::this_thread::sleep_for(300ms);
  std::string text;
  std::getline(std::ifstream(at(".zerosched.lock")), text);
  EXPECT_EQ(text, lock_of_another_machine());
  end(child);
}

TEST_F(Lock, ThatWasNeverWritten) {
  put(".zerosched.lock", "");
  { const FolderLock lock(root, {}, quick()); }
  EXPECT_EQ(names(), Names());
}

TEST_F(Lock, IsTouched) {
  const FolderLock lock(root, {}, quick());
  const auto before = fs::last_write_time(at(".zerosched.lock"));
  std::this_thread::sleep_for(200ms);
  EXPECT_GT(fs::last_write_time(at(".zerosched.lock")), before);
}

TEST_F(Lock, ThatWasLostIsNoticed) {
  {
    const FolderLock lock(root, {}, quick());
    put(".zerosched.lock", lock_of_another_machine());
    expect_message([&] { lock.check_held(); }, {root, "host node7", "nothing was replaced"});
  }
  EXPECT_EQ(names(), Names({".zerosched.lock"})) << "it is the other's";
}

TEST_F(Lock, NeedsAFolderThatCanBeWrittenTo) {
  expect_message(
      [&] { FolderLock lock(at("nowhere")); }, {at("nowhere"), "cannot be locked", "No such file"});
}

TEST(JobIdentity, KnowsWhoRuns) {
  EXPECT_EQ(life_of(JobIdentity::own()), Life::runs);
  JobIdentity other = JobIdentity::own();
  other.started += 1;  // of an earlier process of the same number
  EXPECT_EQ(life_of(other), Life::ended);
  EXPECT_FALSE(other == JobIdentity::own());
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  JobIdentity ended = JobIdentity::own();
  ended.pid = child;
  siginfo_t unused{};
  ::waitid(P_PID, static_cast<id_t>(child), &unused, WEXITED | WNOWAIT);
  EXPECT_EQ(life_of(ended), Life::ended) << "nobody has asked how it ended";
  ::waitpid(child, nullptr, 0);
  EXPECT_EQ(life_of(ended), Life::ended);
  other.place = "another boot";
  EXPECT_EQ(life_of(other), Life::unknown);
  EXPECT_TRUE(parse_job_identity(to_json(other)) == other);
}

}  // namespace
}  // namespace zerosched::detail
