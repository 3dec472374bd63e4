#include "layout/description.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <sstream>

namespace zerosched::detail {
namespace {

void write_list(std::ostream& out, const std::vector<int64_t>& values) {
  out << '[';
  for (size_t i = 0; i < values.size(); ++i) out << (i ? ", " : "") << values[i];
  out << ']';
}

}  // namespace

std::vector<std::string> describe(const std::vector<ParameterSpec>& parameters) {
  std::vector<std::string> lines;
  lines.reserve(parameters.size());
  for (const ParameterSpec& parameter : parameters) {
    std::ostringstream line;
    line << "parameter '" << parameter.name << "' ";
    write_list(line, parameter.sizes);
    line << ' ' << c10::toString(parameter.dtype) << " strides ";
    write_list(line, parameter.strides);
    line << " in group " << parameter.group;
    lines.push_back(line.str());
  }
  return lines;
}

int64_t hash_of(const std::vector<std::string>& lines) {
  uint64_t hash = 0;
  for (const std::string& line : lines) hash = XXH3_64bits_withSeed(line.data(), line.size(), hash + 1);
  return static_cast<int64_t>(hash);
}

std::string first_difference(
    const std::vector<std::string>& mine, const std::vector<std::string>& reference, int rank) {
  const size_t common = std::min(mine.size(), reference.size());
  size_t i = 0;
  while (i < common && mine[i] == reference[i]) ++i;
  if (i == common && mine.size() == reference.size()) return {};
  const auto line_at = [i](const std::vector<std::string>& lines) {
    return i < lines.size() ? lines[i] : std::string("nothing more");
  };
  std::ostringstream message;
  message << "ranks were given different models or options. First difference: rank 0 has "
          << line_at(reference) << "; rank " << rank << " has " << line_at(mine)
          << ". Every rank must construct the optimizer over the same parameters, in the same order, with "
             "the same options.";
  return message.str();
}

}  // namespace zerosched::detail
