#include "report.h"

#include <algorithm>
#include <iomanip>
#include <ostream>
#include <set>
#include <sstream>
#include <string>

namespace doctor {

namespace {

constexpr size_t kWidth = 110;  // of text

/// "0-3,8" for 0 1 2 3 8.
std::string ranges(const std::vector<int>& numbers) {
  std::ostringstream text;
  for (size_t i = 0; i < numbers.size();) {
    size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    text << (i == 0 ? "" : ",") << numbers[i];
    if (last > i) text << '-' << numbers[last];
    i = last + 1;
  }
  return text.str();
}

using Row = std::vector<std::string>;

void print_rows(const std::vector<Row>& rows, std::ostream& out) {
  std::vector<size_t> widths(rows.front().size());
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : rows) {
    std::ostringstream line;
    for (size_t i = 0; i < row.size(); ++i)
      line << std::left << std::setw(static_cast<int>(widths[i]) + 2) << row[i];
    const auto text = line.str();
    out << "  " << text.substr(0, text.find_last_not_of(' ') + 1) << '\n';
  }
  out << '\n';
}

void print_wrapped(const std::string& text, size_t indent, std::ostream& out) {
  std::istringstream words(text);
  size_t column = indent;
  for (std::string word; words >> word;) {
    if (column > indent && column + 1 + word.size() > kWidth) {
      out << '\n' << std::string(indent, ' ');
      column = indent;
    }
    if (column > indent) {
      out << ' ';
      ++column;
    }
    out << word;
    column += word.size();
  }
  out << '\n';
}

std::string fixed(double value, int digits) {
  std::ostringstream text;
  text << std::fixed << std::setprecision(digits) << value;
  return text.str();
}

}  // namespace

int64_t Report::count(Level level) const {
  return std::count_if(
      findings.begin(), findings.end(), [&](const Finding& finding) { return finding.level == level; });
}

void print_table(const Report& report, std::ostream& out) {
  std::vector<Row> rows{{"rank", "host", "place", "device", "GPUs seen", "cores", "threads"}};
  for (const auto& rank : report.ranks) {
    rows.push_back({std::to_string(rank.rank), rank.host, std::to_string(rank.local_rank), rank.device,
        std::to_string(rank.gpus), ranges(rank.cores), std::to_string(rank.threads)});
  }
  out << "Ranks\n";
  print_rows(rows, out);

  if (!report.bandwidth.empty()) {
    rows = {{"collective", "MiB", "ms", "GB/s each way, per rank", "between hosts, per host"}};
    for (const auto& line : report.bandwidth) {
      rows.push_back({line.collective, fixed(static_cast<double>(line.bytes) / (1 << 20), 0),
          fixed(1e3 * line.seconds, 2),
          report.ranks.size() > 1 ? fixed(1e-9 * line.bytes_per_second, 3) : "-",
          line.host_bytes_per_second > 0 ? fixed(1e-9 * line.host_bytes_per_second, 3) : "-"});
    }
    out << "Bandwidth\n";
    print_rows(rows, out);
  }

  out << "Findings\n";
  for (const auto& finding : report.findings) {
    out << "  " << std::left << std::setw(9) << nlohmann::json(finding.level).get<std::string>()
        << std::setw(15) << finding.check;
    print_wrapped(finding.what, 26, out);
    if (!finding.advice.empty()) {
      out << std::string(26, ' ');
      print_wrapped("> " + finding.advice, 26, out);
    }
  }
  const auto problems = report.count(Level::problem), warnings = report.count(Level::warning);
  out << '\n'
      << problems << (problems == 1 ? " problem, " : " problems, ") << warnings
      << (warnings == 1 ? " warning" : " warnings") << std::endl;
}

void print_json(const Report& report, std::ostream& out) {
  out << nlohmann::json{{"ranks", report.ranks}, {"findings", report.findings},
             {"bandwidth", report.bandwidth}, {"stream", report.stream},
             {"problems", report.count(Level::problem)}, {"warnings", report.count(Level::warning)}}
      << std::endl;
}

}  // namespace doctor
