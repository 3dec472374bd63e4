#include "io/folder_lock.h"

#include "base/random_id.h"
#include "base/start_thread.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <ctime>
#include <optional>
#include <stdexcept>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace zerosched::detail {

namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr uint64_t kMostBytes = 1 << 16;

struct Owner {
  JobIdentity process;
  std::string token;
  int64_t since = 0;  ///< seconds since 1970
};

std::string to_text(const Owner& owner) {
  return json{{"process", to_json(owner.process)}, {"token", owner.token}, {"since", owner.since}}.dump() +
         '\n';
}

// Nothing if it is not written yet, or somebody else's file.
std::optional<Owner> parse_owner(const std::string& text) {
  try {
    const json whole = parse_json(text);
    return Owner{parse_job_identity(whole.at("process")), whole.at("token").get<std::string>(),
        whole.at("since").get<int64_t>()};
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

std::string time_text(int64_t seconds) {
  const auto time = static_cast<std::time_t>(seconds);
  std::tm parts{};
  gmtime_r(&time, &parts);
  char text[64];
  std::strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S UTC", &parts);
  return text;
}

// A lock as it is found. It is opened each time: then NFS asks its server instead of its cache.
struct Seen {
  std::string text;
  timespec touched{};
};

std::optional<Seen> look_at(const std::string& path) {
  const int number = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (number < 0) {
    if (errno == ENOENT || errno == ESTALE || errno == EINTR) return std::nullopt;  // look again
    fail_with_reason(path, "cannot be read", errno);
  }
  const Descriptor file(number);
  struct stat status {};
  if (::fstat(number, &status) != 0) return std::nullopt;
  Seen seen;
  seen.touched = status.st_mtim;
  if (S_ISREG(status.st_mode) && static_cast<uint64_t>(status.st_size) <= kMostBytes) {
    seen.text.resize(static_cast<size_t>(status.st_size));
    const ssize_t count = ::pread(number, seen.text.data(), seen.text.size(), 0);
    seen.text.resize(count > 0 ? static_cast<size_t>(count) : 0);
  }
  return seen;
}

// What one process concludes from looking at another's lock again and again.
class Watch {
 public:
  explicit Watch(const LockTimes& times) : times_(times) {}

  // Whether the lock's process has ended.
  bool has_ended(const Seen& seen, const std::optional<Owner>& owner) {
    const bool same = seen.text == last_.text && seen.touched.tv_sec == last_.touched.tv_sec &&
                      seen.touched.tv_nsec == last_.touched.tv_nsec;
    // A look that takes long was waiting for the file server, as the owner was who wanted to touch it.
    constexpr auto kMostOfALook = std::chrono::seconds(1);
    const auto now = Clock::now();
    silence_ = same ? silence_ + std::min<Clock::duration>(now - looked_, kMostOfALook) : Clock::duration();
    looked_ = now;
    if (!same) last_ = seen;
    const Life life = owner ? life_of(owner->process) : Life::unknown;
    if (life != Life::unknown) return life == Life::ended;
    return silence_ > (owner ? times_.silence : times_.unwritten);
  }

 private:
  const LockTimes& times_;
  Seen last_;
  Clock::duration silence_{};  ///< for how long it has looked like last_
  Clock::time_point looked_ = Clock::now();
};

}  // namespace

FolderLock::FolderLock(
    const std::string& folder, const std::function<void(const std::string&)>& notice, const LockTimes& times)
    : folder_(folder), path_(folder + '/' + kLockName), token_(random_name()) {
  const auto begin = Clock::now();
  bool noticed = !notice;
  Watch watch(times);
  while (!try_to_make()) {
    const std::optional<Seen> seen = look_at(path_);
    const std::optional<Owner> owner = seen ? parse_owner(seen->text) : std::nullopt;
    if (seen && watch.has_ended(*seen, owner) && try_to_take_over(seen->text)) continue;
    const auto waited = Clock::now() - begin;
    const std::string who =
        owner ? name_of(owner->process) + " has been saving here since " + time_text(owner->since)
              : "somebody is beginning to save here";
    if (waited > times.patience) {
      throw std::runtime_error(
          folder_ + ": " + who + ", and has not ended for " +
          std::to_string(std::chrono::duration_cast<std::chrono::seconds>(waited).count()) +
          " s. Give each job a folder of its own, or end the other. If it does not exist any more, delete " +
          path_ + '.');
    }
    if (!noticed && waited > times.until_notice) {
      notice(folder_ + ": waiting, since " + who + '.');
      noticed = true;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  beating_ = start_thread([this, every = times.beat] { beat(every); });
}

FolderLock::~FolderLock() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ended_ = true;
  }
  wake_.notify_one();
  beating_.join();
  touched_.reset();
  try {
    const std::optional<Seen> seen = look_at(path_);
    const std::optional<Owner> owner = seen ? parse_owner(seen->text) : std::nullopt;
    if (owner && owner->token == token_) ::unlink(path_.c_str());
  } catch (const std::exception&) {
    // What cannot be read any more: others will see that its process has ended.
  }
}

bool FolderLock::try_to_make() {
  const std::string text = to_text(Owner{JobIdentity::own(), token_, std::time(nullptr)});
  constexpr const char* kDoing = "it cannot be locked for saving";
  Descriptor made(::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (made.number() < 0) {
    if (errno == EEXIST || errno == EINTR) return false;
    fail_with_reason(folder_, kDoing, errno);
  }
  // Closed, which is when NFS sends it to the server; opened again to be touched.
  if (::write(made.number(), text.data(), text.size()) == static_cast<ssize_t>(text.size()) && made.close()) {
    Descriptor touched(::open(path_.c_str(), O_WRONLY | O_CLOEXEC));
    if (touched.number() >= 0) {
      touched_.emplace(std::move(touched));
      return true;
    }
  }
  const int reason = errno;
  ::unlink(path_.c_str());
  fail_with_reason(folder_, kDoing, reason);
}

// Whether the lock that says `text` is gone. By a rename, as two who take over the same lock must not both delete: the
// second would delete what the first has made since.
bool FolderLock::try_to_take_over(const std::string& text) const {
  const std::string aside = path_ + '.' + token_;
  if (std::rename(path_.c_str(), aside.c_str()) != 0) return errno == ENOENT;
  const std::optional<Seen> seen = look_at(aside);
  const bool right = seen && seen->text == text;
  if (!right && ::link(aside.c_str(), path_.c_str()) != 0 && errno != EEXIST) {
    return std::rename(aside.c_str(), path_.c_str()) != 0;
  }
  ::unlink(aside.c_str());
  return right;
}

void FolderLock::beat(std::chrono::milliseconds every) {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!wake_.wait_for(lock, every, [this] { return ended_; })) ::futimens(touched_->number(), nullptr);
}

void FolderLock::check_held() const {
  const std::optional<Seen> seen = look_at(path_);
  const std::optional<Owner> owner = seen ? parse_owner(seen->text) : std::nullopt;
  if (owner && owner->token == token_) return;
  throw std::runtime_error(folder_ + ": " +
                           (owner ? name_of(owner->process) : std::string("another process")) +
                           " has begun to save here, as this one had not run for a while; nothing was "
                           "replaced. Give each job a folder of "
                           "its own.");
}

bool is_left_of_lock(const std::string& file_name) {
  const std::string begin = std::string(kLockName) + '.';
  return file_name.size() == begin.size() + kRandomNameDigits &&
         file_name.compare(0, begin.size(), begin) == 0 &&
         file_name.find_first_not_of("0123456789abcdef", begin.size()) == std::string::npos;
}

}  // namespace zerosched::detail
