#include <zerosched/timings.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>

namespace zerosched {
namespace {

/// Waiting that is not worth a word, as a part of the time.
constexpr double kNotWorthAWord = 0.05;

/// Collecting is in it because compatible mode waits for bucket buffers there.
double waiting(const Timings& mean) {
  return mean.wait_between_steps + mean.collect_gradients + mean.wait_reduce_scatter + mean.wait_all_gather;
}

template <typename Value>
double mean_of_others(const std::vector<TimingReport::Rank>& ranks, size_t excluded, Value value) {
  double sum = 0;
  for (size_t r = 0; r < ranks.size(); ++r) sum += r == excluded ? 0 : value(ranks[r].mean);
  return sum / static_cast<double>(ranks.size() - 1);
}

struct OwnWork {
  const char* phase;
  double (*seconds)(const Timings& mean);
};
// Backward is a part of what is between steps, and says more.
constexpr OwnWork kOwnWork[] = {{"backward", [](const Timings& mean) { return mean.backward; }},
    {"update", [](const Timings& mean) { return mean.update; }},
    {"between_steps",
        [](const Timings& mean) { return mean.between_steps - mean.wait_between_steps - mean.wait_ready; }}};

/// The phase in which `rank` is slower than the others by at least half of what they wait.
std::string slow_phase(const std::vector<TimingReport::Rank>& ranks, size_t rank, double waited) {
  for (const OwnWork& work : kOwnWork) {
    const double longer = work.seconds(ranks[rank].mean) - mean_of_others(ranks, rank, work.seconds);
    if (longer > waited / 2) return work.phase;
  }
  return {};
}

double milliseconds(double seconds) { return 1e3 * seconds; }

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.*f", value < 10 ? 2 : value < 100 ? 1 : 0, value);
  return text;
}

std::string right(const std::string& text, size_t width) {
  return std::string(width > text.size() ? width - text.size() : 0, ' ') + text;
}

struct Column {
  const char* first_line;
  const char* second_line;
  double Timings::*seconds;
};
constexpr Column kColumns[] = {{"between", "steps", &Timings::between_steps},
    {"waiting", "between steps", &Timings::wait_between_steps}, {"", "backward", &Timings::backward},
    {"collecting", "gradients", &Timings::collect_gradients},
    {"waiting for", "reduce-scatter", &Timings::wait_reduce_scatter}, {"gradient", "norm", &Timings::norm},
    {"", "update", &Timings::update}, {"waiting for", "all-gather", &Timings::wait_all_gather},
    {"", "step()", &Timings::step}};
constexpr size_t kRankWidth = 6, kWidth = 16;

}  // namespace

std::optional<TimingReport::Straggler> TimingReport::straggler() const {
  if (ranks.size() < 2 || steps == 0) return std::nullopt;
  const auto least = std::min_element(ranks.begin(), ranks.end(),
      [](const Rank& a, const Rank& b) { return waiting(a.mean) < waiting(b.mean); });
  const auto rank = static_cast<size_t>(least - ranks.begin());
  const double waited = mean_of_others(ranks, rank, waiting) - waiting(least->mean);
  if (waited <= kNotWorthAWord * (least->mean.between_steps + least->mean.step)) return std::nullopt;
  return Straggler{static_cast<int>(rank), waited, slow_phase(ranks, rank, waited)};
}

std::string TimingReport::table() const {
  if (steps == 0) return {};
  std::string text = "Milliseconds per step over " + std::to_string(steps) + " steps, mean / worst:\n";
  std::vector<Column> columns;
  for (const Column& column : kColumns) {
    const bool used = std::any_of(ranks.begin(), ranks.end(),
        [&](const Rank& rank) { return milliseconds(rank.worst.*column.seconds) >= 0.05; });
    if (used) columns.push_back(column);
  }
  std::string first_line(kRankWidth, ' ');
  std::string second_line = right("rank", kRankWidth);
  for (const Column& column : columns) {
    first_line += right(column.first_line, kWidth);
    second_line += right(column.second_line, kWidth);
  }
  first_line.erase(first_line.find_last_not_of(' ') + 1);
  text += first_line + "\n" + second_line + "\n";
  for (size_t r = 0; r < ranks.size(); ++r) {
    text += right(std::to_string(r), kRankWidth);
    for (const Column& column : columns) {
      const double mean = milliseconds(ranks[r].mean.*column.seconds);
      const double worst = milliseconds(ranks[r].worst.*column.seconds);
      text += right(number(mean) + " / " + right(number(worst), 5), kWidth);
    }
    text += "\n";
  }
  if (ranks.size() < 2) return text;
  const auto slow = straggler();
  if (!slow) return text + "No rank keeps the others waiting.\n";
  text += "Rank " + std::to_string(slow->rank) +
          " keeps the others waiting: " + number(milliseconds(slow->seconds)) +
          " ms per step longer than it waits itself";
  if (slow->phase == "between_steps") {
    text += "; it takes longer between steps, outside backward";
  } else if (!slow->phase.empty()) {
    text += "; its " + slow->phase + " takes longer than theirs";
  }
  return text + ".\n";
}

}  // namespace zerosched
