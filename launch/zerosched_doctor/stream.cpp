#include "stream.h"

#include "gather.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <optional>
#include <system_error>
#include <utility>

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

namespace doctor {

namespace {

constexpr int kConnectMilliseconds = 2000;
// For all addresses that the other end may have to try.
constexpr int kAcceptMilliseconds = 20000;
constexpr int kStallMilliseconds = 10000;
constexpr int kRepetitions = 3;

[[noreturn]] void fail(const char* what) { throw std::system_error(errno, std::generic_category(), what); }

class Socket {
 public:
  explicit Socket(int fd) : fd_(fd) {
    if (fd < 0) fail("socket");
  }
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_;
};

struct Interface {
  in_addr_t address = 0, mask = 0;
};

std::vector<Interface> interfaces() {
  std::vector<Interface> found;
  ifaddrs* first = nullptr;
  if (getifaddrs(&first) != 0) fail("getifaddrs");
  for (const ifaddrs* each = first; each != nullptr; each = each->ifa_next) {
    if (each->ifa_addr == nullptr || each->ifa_addr->sa_family != AF_INET) continue;
    if ((each->ifa_flags & IFF_UP) == 0 || (each->ifa_flags & IFF_LOOPBACK) != 0) continue;
    found.push_back({reinterpret_cast<const sockaddr_in*>(each->ifa_addr)->sin_addr.s_addr,
        reinterpret_cast<const sockaddr_in*>(each->ifa_netmask)->sin_addr.s_addr});
  }
  freeifaddrs(first);
  return found;
}

std::string text_of(in_addr_t address) {
  char text[INET_ADDRSTRLEN];
  const in_addr as_struct{address};
  return inet_ntop(AF_INET, &as_struct, text, sizeof text);
}

bool ready(int fd, short events, int milliseconds) {
  pollfd waiting{fd, events, 0};
  return poll(&waiting, 1, milliseconds) > 0;
}

/// Of any address, and a port that the system chooses.
Socket listen_anywhere(int& port) {
  Socket listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in any{};
  any.sin_family = AF_INET;
  socklen_t length = sizeof any;
  if (bind(listener.fd(), reinterpret_cast<sockaddr*>(&any), sizeof any) != 0) fail("bind");
  if (listen(listener.fd(), 1) != 0) fail("listen");
  if (getsockname(listener.fd(), reinterpret_cast<sockaddr*>(&any), &length) != 0) fail("getsockname");
  port = ntohs(any.sin_port);
  return listener;
}

Socket accept_one(const Socket& listener) {
  if (!ready(listener.fd(), POLLIN, kAcceptMilliseconds)) {
    errno = ETIMEDOUT;
    fail("accept");
  }
  return Socket(accept4(listener.fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
}

std::optional<Socket> connect_to(in_addr_t address, int port) {
  Socket made(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_addr.s_addr = address;
  to.sin_port = htons(static_cast<uint16_t>(port));
  if (connect(made.fd(), reinterpret_cast<sockaddr*>(&to), sizeof to) != 0) {
    int error = 0;
    socklen_t length = sizeof error;
    if (errno != EINPROGRESS || !ready(made.fd(), POLLOUT, kConnectMilliseconds) ||
        getsockopt(made.fd(), SOL_SOCKET, SO_ERROR, &error, &length) != 0 || error != 0) {
      return std::nullopt;
    }
  }
  return made;
}

/// Seconds to send and receive so many bytes at once.
double exchange(const Socket& peer, int64_t byte_count) {
  std::vector<char> out(size_t{1} << 20), in(out.size());
  int64_t to_send = byte_count, to_receive = byte_count;
  const auto start = std::chrono::steady_clock::now();
  while (to_send > 0 || to_receive > 0) {
    const int events = (to_send > 0 ? POLLOUT : 0) | (to_receive > 0 ? POLLIN : 0);
    if (!ready(peer.fd(), static_cast<short>(events), kStallMilliseconds)) {
      errno = ETIMEDOUT;
      fail("exchange");
    }
    const auto piece = [&](int64_t left) { return std::min(static_cast<size_t>(left), out.size()); };
    const auto moved = [](ssize_t count) {
      if (count < 0 && errno != EAGAIN && errno != EINTR) fail("exchange");
      return std::max<ssize_t>(count, 0);
    };
    if (to_send > 0) to_send -= moved(send(peer.fd(), out.data(), piece(to_send), MSG_NOSIGNAL));
    if (to_receive > 0) {
      const ssize_t count = recv(peer.fd(), in.data(), piece(to_receive), 0);
      if (count == 0) {
        errno = ECONNRESET;
        fail("exchange");
      }
      to_receive -= moved(count);
    }
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// The fastest of some: what disturbs one is nothing that the network is.
double fastest_exchange(const Socket& peer, int64_t byte_count) {
  double best = exchange(peer, byte_count);
  for (int i = 1; i < kRepetitions; ++i) best = std::min(best, exchange(peer, byte_count));
  return best;
}

/// What the connecting end learns.
struct Outcome {
  std::string address;
  double seconds = 0;
};

Outcome connect_and_exchange(const nlohmann::json& offer, int64_t byte_count) {
  const auto own = interfaces();
  auto addresses = offer.at("addresses").get<std::vector<in_addr_t>>();
  // Networks that both are in first.
  std::stable_partition(addresses.begin(), addresses.end(), [&](in_addr_t address) {
    return std::any_of(own.begin(), own.end(),
        [&](const Interface& mine) { return (mine.address & mine.mask) == (address & mine.mask); });
  });
  for (const in_addr_t address : addresses) {
    if (auto peer = connect_to(address, offer.at("port").get<int>())) {
      return {text_of(address), fastest_exchange(*peer, byte_count)};
    }
  }
  throw std::runtime_error("none of its addresses answers");
}

}  // namespace

Stream measure_stream(
    zerosched::Communicator& communicator, const std::vector<Facts>& facts, int64_t byte_count) {
  Stream stream;
  const auto other = std::find_if(
      facts.begin(), facts.end(), [&](const Facts& each) { return each.host != facts.front().host; });
  if (other == facts.end()) return stream;
  stream.from = facts.front().host;
  stream.to = other->host;
  nlohmann::json mine;
  std::optional<Socket> listener;
  if (communicator.rank() == 0) {
    try {
      int port = 0;
      listener.emplace(listen_anywhere(port));
      std::vector<in_addr_t> addresses;
      for (const Interface& each : interfaces()) addresses.push_back(each.address);
      mine = {{"port", port}, {"addresses", addresses}};
    } catch (const std::exception& error) {
      mine = {{"error", error.what()}};
    }
  }
  const nlohmann::json offer = gather(communicator, mine).front();
  mine = nullptr;
  if (!offer.contains("error")) {
    try {
      if (communicator.rank() == 0) fastest_exchange(accept_one(*listener), byte_count);
      if (communicator.rank() == other->rank) {
        const Outcome outcome = connect_and_exchange(offer, byte_count);
        mine = {{"address", outcome.address}, {"seconds", outcome.seconds}};
      }
    } catch (const std::exception& error) {
      mine = {{"error", error.what()}};
    }
  }
  const auto outcomes = gather(communicator, mine);
  const auto& outcome = outcomes[static_cast<size_t>(other->rank)];
  for (const auto* each : {&offer, &outcomes.front(), &outcome}) {
    if (each->is_object() && each->contains("error")) stream.error = each->at("error");
  }
  if (!stream.error.empty()) return stream;
  stream.address = outcome.at("address");
  stream.bytes_per_second = static_cast<double>(byte_count) / outcome.at("seconds").get<double>();
  return stream;
}

}  // namespace doctor
