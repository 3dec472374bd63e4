// Files and folders, without an optimizer: what is made and unmade, and what is ours in a folder.
#include "io/checkpoint_list.h"
#include "io/checkpoint_names.h"
#include "io/file.h"
#include "io/folder_contents.h"
#include "io/folder_lock.h"
#include "io/in_a_folder.h"
#include "io/latest.h"
#include "io/manifest.h"
#include "io/small_checkpoint.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

namespace {

/// How often calls are interrupted by a signal before they are done.
int interruptions = 0;
/// Whether what NFS keeps of a file that is read cannot be deleted.
bool is_read_over_nfs = false;
/// What fallocate() says instead of doing it; 0: it does it.
int allocation_error = 0;

bool is_interrupted() {
  if (interruptions == 0) return false;
  --interruptions;
  errno = EINTR;
  return true;
}

template <typename Function>
Function* real(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int fsync(int file) {
  return is_interrupted() ? -1 : real<int(int)>("fsync")(file);
}
extern "C" __attribute__((visibility("default"))) int fallocate(
    int file, int mode, off_t offset, off_t length) {
  if (is_interrupted()) return -1;
  if (allocation_error == 0)
    return real<int(int, int, off_t, off_t)>("fallocate")(file, mode, offset, length);
  errno = allocation_error;
  return -1;
}
extern "C" __attribute__((visibility("default"))) int remove(const char* path) noexcept {
  if (is_read_over_nfs && std::strstr(path, "/.nfs") != nullptr) {
    errno = EBUSY;
    return -1;
  }
  return real<int(const char*)>("remove")(path);
}

namespace zerosched::detail {
namespace {

namespace fs = std::filesystem;
using testing::expect_message;
using testing::make_small_checkpoint;
using testing::Names;

class Files : public testing::InAFolder {
 protected:
  void TearDown() override {
    interruptions = allocation_error = 0;
    is_read_over_nfs = false;
    InAFolder::TearDown();
  }
};

TEST_F(Files, NewFileGoesUnlessItIsFinished) {
  {
    NewFile file(at("a"), 100);
    file.write("text", 4, 0);
    EXPECT_EQ(fs::file_size(at("a")), 100U);
  }
  EXPECT_EQ(names(), Names());
  {
    NewFile file(at("a"), 4);
    file.write("text", 4, 0);
    file.finish_as(at("b"));
  }
  EXPECT_EQ(names(), Names({"b"}));
  EXPECT_EQ(read_text(at("b")), "text");
  fs::create_directories(at("taken/x"));
  expect_message([&] { write_text(at("taken"), "text"); }, {at("taken"), "directory"});
  EXPECT_EQ(names(), Names({"b", "taken"}));
}

TEST_F(Files, FullDiskAndMissingAllocation) {
  allocation_error = ENOSPC;
  expect_message([&] { NewFile(at("a"), 100); }, {at("a"), "No space left on device"});
  EXPECT_EQ(names(), Names());
  for (const int missing : {EOPNOTSUPP, ENOSYS}) {
    allocation_error = missing;
    NewFile file(at("a"), 100);
    EXPECT_EQ(fs::file_size(at("a")), 0U) << "nothing is written only to take space";
  }
}

TEST_F(Files, WhatASignalInterruptsIsDoneAgain) {
  interruptions = 3;
  NewFile file(at("a"), 100);
  interruptions = 3;
  file.finish();
  interruptions = 3;
  sync_folder(root);
  EXPECT_EQ(interruptions, 0);
}

TEST_F(Files, OnlyRegularFilesOfABearableSizeAreRead) {
  ASSERT_EQ(::mkfifo(at("pipe").c_str(), 0600), 0);
  expect_message(
      [&] { read_text(at("pipe")); }, {at("pipe"), "not a regular file"});  // and does not wait for a writer
  expect_message([&] { read_text(root); }, {"not a regular file"});
  put("text", "12345");
  EXPECT_EQ(read_text(at("text"), 5), "12345");
  expect_message([&] { read_text(at("text"), 4); }, {at("text"), "5 bytes", "at most 4"});
}

TEST_F(Files, MakesFolders) {
  make_folders(at("a/b/c"));
  EXPECT_TRUE(fs::is_directory(at("a/b/c")));
  make_folders(at("a/b"));
  put("file");
  expect_message([&] { make_folders(at("file/b")); }, {at("file")});
}

TEST(CheckpointNames, OfFiles) {
  for (const char* ours : {"manifest.json", "manifest.json.new", "module.safetensors",
           "rank_00000.safetensors", "rank_99999.safetensors", "rank_123456.safetensors"}) {
    EXPECT_TRUE(is_checkpoint_file(ours)) << ours;
  }
  for (const char* others : {"rank_", "rank_of_models.txt", "rank_0.safetensors", "rank_000000.safetensors",
           "rank_00000.safetensors.bak", "rank_0000a.safetensors", "manifest.json.old", "notes"}) {
    EXPECT_FALSE(is_checkpoint_file(others)) << others;
  }
  EXPECT_TRUE(is_part_name(part_name(0)) && is_part_name(part_name(12)));
  EXPECT_FALSE(is_part_name("optimizer_") || is_part_name("optimizer_01") || is_part_name("optimizer_a"));
  EXPECT_EQ(name_behind(".a.b.partial", kPartial), "a.b");
  EXPECT_FALSE(name_behind(".partial", kPartial) || name_behind("a.partial", kPartial) ||
               name_behind("..partial", kPartial) || name_behind("..a.partial", kPartial) ||
               name_behind(".latest.partial", kPartial));
  EXPECT_TRUE(is_left_of_lock(".zerosched.lock.0123456789abcdef"));
  EXPECT_FALSE(is_left_of_lock(".zerosched.lock") || is_left_of_lock(".zerosched.lock.0123456789abcdeg"));
}

TEST(CheckpointNames, OfOneSequence) {
  EXPECT_TRUE(are_of_one_sequence("step_100", "step_2000"));
  EXPECT_TRUE(are_of_one_sequence("2026-01-02T10:00", "2027-11-12T09:30"));
  EXPECT_TRUE(are_of_one_sequence("a", "b"));
  EXPECT_FALSE(are_of_one_sequence("best", "step_100"));
  EXPECT_FALSE(are_of_one_sequence("g_100", "d_100"));
}

TEST_F(Files, LatestIsALinkOrAFile) {
  EXPECT_EQ(read_latest(root), "");
  EXPECT_TRUE(latest_is_ours(root));
  prepare_latest(root, "step_1");
  publish_latest(root);
  EXPECT_EQ(fs::read_symlink(at("latest")), "step_1");
  EXPECT_EQ(read_latest(root), at("step_1"));
  EXPECT_EQ(names(), Names({"latest"}));
  fs::remove(at("latest"));
  put("latest", "step_2\n");
  EXPECT_TRUE(latest_is_ours(root));
  EXPECT_EQ(read_latest(root), at("step_2"));
  for (const char* others : {"", "step_2", "two\nlines\n", ".hidden\n", "a/b\n", "latest\n"}) {
    put("latest", others);
    EXPECT_FALSE(latest_is_ours(root)) << others;
    EXPECT_EQ(read_latest(root), "") << others;
  }
  fs::remove(at("latest"));
  fs::create_directory(at("latest"));
  EXPECT_FALSE(latest_is_ours(root));
}

TEST_F(Files, TakesUpWhatKilledJobsLeave) {
  make_small_checkpoint(at(".a.partial"), 1);  // killed before it had its name
  make_small_checkpoint(at("b"), 3);           // killed after the names were exchanged
  make_small_checkpoint(at(".b.partial"), 2);
  make_small_checkpoint(at(".c.old"), 4);  // killed between two renames
  make_small_checkpoint(at(".c.partial"), 5);
  make_small_checkpoint(at(".d.old"), 6);  // and the new one is not whole
  put(".d.partial/rank_00000.safetensors");
  put(".e.partial/rank_00000.safetensors");
  fs::create_directories(at(".f.partial/optimizer_0"));
  put(".g.deleted/module.safetensors");
  put(".model.safetensors.exporting");
  put(".zerosched.lock.0123456789abcdef");
  fs::create_symlink("a", at(".latest.new"));
  EXPECT_EQ(newest_checkpoint(root), at(".d.old"));
  EXPECT_EQ(resolve_checkpoint(at("c")), at(".c.partial"));
  take_up_leftovers(root);
  EXPECT_EQ(names(), Names({"a", "b", "c", "d"}));
  EXPECT_EQ(summary_of(at("b"))->created, 3);
  EXPECT_EQ(summary_of(at("c"))->created, 5);
  EXPECT_EQ(newest_checkpoint(root), at("d"));
  EXPECT_EQ(resolve_checkpoint(at(".d.old")), at("d")) << "found before it had its name";
}

// People make the folder that they are going to save into.
TEST_F(Files, AnEmptyFolderIsNoCheckpoint) {
  fs::create_directory(at("last"));
  make_small_checkpoint(at(".last.partial"), 2);
  make_small_checkpoint(at(".last.old"), 1);
  EXPECT_EQ(newest_checkpoint(root), at(".last.partial"));
  EXPECT_EQ(resolve_checkpoint(at("last")), at(".last.partial"));
  take_up_leftovers(root);
  EXPECT_EQ(names(), Names({"last"}));
  EXPECT_EQ(summary_of(at("last"))->created, 2);
}

TEST_F(Files, ExportsOfAnyNameAreCleanedUp) {
  for (const char* name : {"..hidden.safetensors.exporting", ".latest.exporting"}) put(name);
  take_up_leftovers(root);
  EXPECT_EQ(names(), Names());
}

TEST_F(Files, AnUnfinishedFileTakesNoOthersAway) {
  {
    NewFile file(at("model"), 0);
    fs::remove(at("model"));
    put("model");  // of one who took this process for dead
  }
  EXPECT_EQ(names(), Names({"model"}));
  { NewFile file(at("other"), 0); }
  EXPECT_EQ(names(), Names({"model"}));
}

// Who reads a file of an old checkpoint does not stand in the way of new ones.
TEST_F(Files, WhatIsStillReadOverNfsMakesWay) {
  const std::string kept = "/.nfs000000000123456700000001";
  put(".a.old" + kept);
  put(".a.old/rank_00000.safetensors");
  make_small_checkpoint(at("b"), 2);
  make_small_checkpoint(at(".b.partial"), 1);
  put(".b.partial/optimizer_0" + kept);
  put(".c.old/.nfs_of_mine");
  is_read_over_nfs = true;
  take_up_leftovers(root);
  const Names left = names();
  EXPECT_EQ(left.size(), 4U);
  EXPECT_EQ(left.count("b") + left.count(".c.old"), 2U) << "that which holds more is nobody's to rename";
  for (const std::string& name : left) {
    if (name == "b" || name == ".c.old") continue;
    EXPECT_EQ(name.substr(name.rfind('.')), ".deleted");
    EXPECT_FALSE(fs::exists(at(name + "/manifest.json")) || fs::exists(at(name + "/rank_00000.safetensors")));
  }
  take_up_leftovers(root);
  EXPECT_EQ(names(), left);
  is_read_over_nfs = false;
  take_up_leftovers(root);
  EXPECT_EQ(names(), Names({"b", ".c.old"}));
}

TEST_F(Files, TakesUpNothingElse) {
  put(".a.partial/rank_of_models.txt");
  put(".b.partial");  // a file
  put(".c.old/notes/manifest.json");
  put(".d.new");
  put(".zerosched.lock.mine");
  fs::create_directories(at(".e.exporting"));
  put("rank_00000.safetensors");
  put("f.partial/rank_00000.safetensors");
  put("g/notes.txt");  // whoever has put this there does not want the last of a checkpoint gone
  make_small_checkpoint(at(".g.old"), 1);
  // What cannot be read is left alone, and keeps nobody from saving beside it.
  make_small_checkpoint(at(".h.partial"), 1);
  fs::remove(at(".h.partial/manifest.json"));
  fs::create_symlink("manifest.json", at(".h.partial/manifest.json"));  // to itself
  const Names before = names();
  take_up_leftovers(root);
  EXPECT_EQ(names(), before);
  EXPECT_TRUE(fs::exists(at(".a.partial/rank_of_models.txt")));
  expect_message([&] { remove_folder(at(".a.partial")); }, {".a.partial", "move it away"});
}

TEST_F(Files, NewestIsByTimeAndWhole) {
  make_small_checkpoint(at("old"), 10);
  make_small_checkpoint(at("new"), 30);
  make_small_checkpoint(at("damaged"), 40);
  std::ofstream(at("damaged/manifest.json"), std::ios::app) << "}";
  fs::create_symlink("old", at("latest"));  // the job was killed before it could say so
  EXPECT_EQ(newest_checkpoint(root), at("new"));
  EXPECT_EQ(resolve_checkpoint(at("latest")), at("old")) << "not the link, which may move on";
  fs::create_symlink("latest", at("link"));
  EXPECT_EQ(resolve_checkpoint(at("link")), at("old"));
  fs::remove(at("latest"));
  put("latest", "old\n");
  EXPECT_EQ(resolve_checkpoint(at("latest")), at("old"));
  EXPECT_EQ(newest_checkpoint(at("nowhere")), "");
}

// Not to be found is not to be there: who starts anew would replace what is there.
TEST_F(Files, WhatCannotBeReadIsNoAbsence) {
  make_small_checkpoint(at("run/step_1"), 1);
  EXPECT_EQ(newest_checkpoint(at("run")), at("run/step_1"));
  put("file");
  EXPECT_EQ(newest_checkpoint(at("file")), "");
  // Links in a circle cannot be read even by root.
  fs::create_symlink("circle", at("circle"));
  expect_message(
      [&] { newest_checkpoint(at("circle")); }, {at("circle"), "cannot be read", "symbolic links"});
  fs::create_directory(at("run/step_2"));
  fs::create_symlink("manifest.json", at("run/step_2/manifest.json"));
  for (const auto& call : std::vector<std::function<void()>>{[&] { newest_checkpoint(at("run")); },
           [&] { summary_of(at("run/step_2")); }, [&] { resolve_checkpoint(at("run/step_2")); }}) {
    expect_message(call, {at("run/step_2/manifest.json"), "symbolic links"});
  }
  fs::remove(at("run/step_2/manifest.json"));
  fs::create_directory(at("run/step_2/manifest.json"));  // of something else
  EXPECT_EQ(newest_checkpoint(at("run")), at("run/step_1"));
}

TEST_F(Files, ProcessesWithoutDescriptorsFindOutThatTheyLackThem) {
  make_small_checkpoint(at("step_1"), 1);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const int next = ::dup(0);
  ::close(next);
  for (const rlim_t left : {0, 1}) {  // for the folder; for a manifest in it
    const rlimit few{static_cast<rlim_t>(next) + left, before.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &few), 0);
    expect_message([&] { newest_checkpoint(root); }, {root, "Too many open files"});
  }
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(newest_checkpoint(root), at("step_1"));
}

}  // namespace
}  // namespace zerosched::detail
