#include "timeline/timeline.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <ostream>
#include <utility>

namespace zerosched::testing {

const char* name_of(Phase phase) {
  switch (phase) {
    case Phase::forward:
      return "forward";
    case Phase::backward:
      return "backward";
    case Phase::pack:
      return "pack";
    case Phase::reduce_scatter:
      return "reduce-scatter";
    case Phase::update:
      return "update";
    case Phase::all_gather:
      return "all-gather";
    case Phase::waiting:
      return "waiting";
    case Phase::other:
      break;
  }
  return "other";
}

void Timeline::add(int lane, Phase phase, std::string name, double begin, double end) {
  if (end > begin) spans_.push_back({lane, phase, std::move(name), begin, end});
}

void Timeline::work(double seconds, Phase phase, const char* name) {
  double& now = lanes_[kHost].free_at;
  add(kHost, phase, name, now, now + seconds);
  now += seconds;
}

void Timeline::block(double time, const char* name) {
  double& now = lanes_[kHost].free_at;
  if (time <= now) return;
  ++blocks_;
  add(kHost, Phase::waiting, name, now, time);
  now = time;
}

int Timeline::add_lane(std::string name) {
  lanes_.push_back({std::move(name), 0});
  return lane_count() - 1;
}

double Timeline::queue(int lane, double seconds, Phase phase, std::string name) {
  double& free_at = lanes_[static_cast<size_t>(lane)].free_at;
  const double begin = std::max(now(), free_at);
  free_at = begin + seconds;
  add(lane, phase, std::move(name), begin, free_at);
  return free_at;
}

void Timeline::hold(int lane, double time) {
  double& free_at = lanes_[static_cast<size_t>(lane)].free_at;
  free_at = std::max(free_at, time);
}

Periods Periods::of(const std::vector<Span>& spans, Phase phase, double begin, double end) {
  Periods periods;
  for (const Span& span : spans) {
    if (span.phase != phase || span.lane == Timeline::kHost) continue;
    const Period period{std::max(span.begin, begin), std::min(span.end, end)};
    if (period.begin < period.end) periods.all_.push_back(period);
  }
  periods.merge();
  return periods;
}

void Periods::merge() {
  std::sort(all_.begin(), all_.end(), [](const Period& a, const Period& b) { return a.begin < b.begin; });
  std::vector<Period> merged;
  for (const Period& period : all_) {
    if (!merged.empty() && period.begin <= merged.back().end) {
      merged.back().end = std::max(merged.back().end, period.end);
    } else {
      merged.push_back(period);
    }
  }
  all_ = std::move(merged);
}

double Periods::seconds() const {
  double sum = 0;
  for (const Period& period : all_) sum += period.end - period.begin;
  return sum;
}

Periods Periods::with(const Periods& others) const {
  Periods both = *this;
  both.all_.insert(both.all_.end(), others.all_.begin(), others.all_.end());
  both.merge();
  return both;
}

Periods Periods::without(const Periods& others) const {
  Periods rest;
  auto other = others.all_.begin();
  for (Period period : all_) {
    while (other != others.all_.end() && other->end <= period.begin) ++other;
    for (auto next = other; next != others.all_.end() && next->begin < period.end; ++next) {
      if (period.begin < next->begin) rest.all_.push_back({period.begin, next->begin});
      period.begin = next->end;
    }
    if (period.begin < period.end) rest.all_.push_back(period);
  }
  return rest;
}

void write_trace(std::ostream& out, const Timeline& timeline, double begin, double end) {
  constexpr double kMicroseconds = 1e6;
  auto events = nlohmann::json::array();
  for (int lane = 0; lane < timeline.lane_count(); ++lane) {
    events.push_back({{"ph", "M"}, {"name", "thread_name"}, {"pid", 0}, {"tid", lane},
        {"args", {{"name", timeline.name_of_lane(lane)}}}});
    events.push_back({{"ph", "M"}, {"name", "thread_sort_index"}, {"pid", 0}, {"tid", lane},
        {"args", {{"sort_index", lane}}}});
  }
  for (const Span& span : timeline.spans()) {
    if (span.end <= begin || span.begin >= end) continue;
    events.push_back(
        {{"ph", "X"}, {"name", span.name}, {"cat", name_of(span.phase)}, {"pid", 0}, {"tid", span.lane},
            {"ts", (span.begin - begin) * kMicroseconds}, {"dur", (span.end - span.begin) * kMicroseconds}});
  }
  out << nlohmann::json{{"displayTimeUnit", "ms"}, {"traceEvents", std::move(events)}}.dump() << '\n';
}

}  // namespace zerosched::testing
