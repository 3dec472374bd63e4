#include "io/checkpoint_names.h"

#include "io/file.h"
#include "io/manifest.h"

#include <algorithm>
#include <cctype>

namespace zerosched::detail {

namespace {

constexpr const char* kPart = "optimizer_";
constexpr const char* kRank = "rank_";
constexpr const char* kSafetensors = ".safetensors";
constexpr size_t kFewestRankDigits = 5;

bool is_digit(char character) { return character >= '0' && character <= '9'; }

bool is_number(const std::string& text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), is_digit);
}

// What is between `begin` and `end` in `text`; nothing unless it has both.
std::optional<std::string> between(
    const std::string& text, const std::string& begin, const std::string& end) {
  if (text.size() < begin.size() + end.size()) return std::nullopt;
  if (text.compare(0, begin.size(), begin) != 0) return std::nullopt;
  if (text.compare(text.size() - end.size(), end.size(), end) != 0) return std::nullopt;
  return text.substr(begin.size(), text.size() - begin.size() - end.size());
}

// Every run of digits as one '#'.
std::string without_numbers(const std::string& name) {
  std::string result;
  for (const char character : name) {
    if (!is_digit(character)) {
      result += character;
    } else if (result.empty() || result.back() != '#') {
      result += '#';
    }
  }
  return result;
}

}  // namespace

std::string hidden_name(const std::string& name, const char* suffix) { return '.' + name + suffix; }

std::optional<std::string> name_behind(const std::string& hidden, const char* suffix) {
  const auto name = between(hidden, ".", suffix);
  return name && is_checkpoint_name(*name) ? name : std::nullopt;
}

bool is_export(const std::string& hidden) { return between(hidden, ".", kExporting).has_value(); }

bool is_checkpoint_name(const std::string& name) {
  return !name.empty() && name[0] != '.' && name != kLatest && name.find('/') == std::string::npos;
}

bool is_checkpoint_file(const std::string& name) {
  if (name == kManifestName || name == std::string(kManifestName) + kUnfinished || name == kModuleFileName) {
    return true;
  }
  const auto rank = between(name, kRank, kSafetensors);
  return rank && is_number(*rank) &&
         (rank->size() == kFewestRankDigits || (rank->size() > kFewestRankDigits && rank->front() != '0'));
}

bool is_kept_by_nfs(const std::string& name) {
  const auto number = between(name, ".nfs", "");
  return number && !number->empty() && std::all_of(number->begin(), number->end(), [](unsigned char each) {
    return std::isxdigit(each) != 0;
  });
}

std::string part_name(size_t index) { return kPart + std::to_string(index); }

bool is_part_name(const std::string& name) {
  const auto index = between(name, kPart, "");
  return index && is_number(*index) && (index->size() == 1 || index->front() != '0');
}

bool are_of_one_sequence(const std::string& a, const std::string& b) {
  const std::string a_without = without_numbers(a);
  const std::string b_without = without_numbers(b);
  return a_without == b_without || (a_without == a && b_without == b);
}

}  // namespace zerosched::detail
