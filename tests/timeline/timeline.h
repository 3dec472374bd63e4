#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

namespace zerosched::testing {

/// What a span of time is spent with.
enum class Phase { forward, backward, pack, reduce_scatter, update, all_gather, other, waiting };
const char* name_of(Phase phase);

/// Something that a lane does from `begin` to `end`, in seconds.
struct Span {
  int lane = 0;
  Phase phase = Phase::other;
  std::string name;
  double begin = 0, end = 0;
};

/// When things happen on a machine that is not there: one thread of a host, and lanes that run beside it, as CUDA's
/// streams do. Time starts at 0 and is in seconds; whoever plays the machine says how long each thing takes.
///
/// A lane does what it is given in that order, one after the other, and nothing before the host has got to giving it: so
/// the end of a thing is known when it is given, and no queue of events is kept.
class Timeline {
 public:
  static constexpr int kHost = 0;  ///< the lane of the host

  Timeline() : lanes_{{"host", 0}} {}

  double now() const { return lanes_[kHost].free_at; }
  /// The host works.
  void work(double seconds, Phase phase, const char* name);
  /// The host does nothing until `time`, unless that is past.
  void block(double time, const char* name);

  int add_lane(std::string name);
  /// Gives the lane something to do; when that ends.
  double queue(int lane, double seconds, Phase phase, std::string name);
  /// What the lane is given from now on does not begin before `time`.
  void hold(int lane, double time);
  /// When all that the lane was given has ended, and holds are over.
  double end_of(int lane) const { return lanes_[static_cast<size_t>(lane)].free_at; }

  /// In the order in which they were given, without those that take no time.
  const std::vector<Span>& spans() const { return spans_; }
  /// Times the host has had to wait.
  int64_t blocks() const { return blocks_; }
  const std::string& name_of_lane(int lane) const { return lanes_[static_cast<size_t>(lane)].name; }
  int lane_count() const { return static_cast<int>(lanes_.size()); }

 private:
  struct Lane {
    std::string name;
    double free_at;
  };
  void add(int lane, Phase phase, std::string name, double begin, double end);

  std::vector<Lane> lanes_;
  std::vector<Span> spans_;
  int64_t blocks_ = 0;
};

/// Periods of time, as a set of points.
class Periods {
 public:
  /// Those of the spans of a phase that lie within [begin, end], on all lanes.
  static Periods of(const std::vector<Span>& spans, Phase phase, double begin, double end);
  double seconds() const;
  Periods with(const Periods& others) const;
  /// What of these lies in none of the others.
  Periods without(const Periods& others) const;

 private:
  void merge();
  struct Period {
    double begin, end;
  };
  std::vector<Period> all_;  // ascending, apart from each other
};

/// Chrome's trace format: https://ui.perfetto.dev opens it. Spans within [begin, end], `begin` is its time 0.
void write_trace(std::ostream& out, const Timeline& timeline, double begin, double end);

}  // namespace zerosched::testing
