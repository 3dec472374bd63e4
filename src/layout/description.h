#pragma once

#include "layout/layout.h"

#include <cstdint>
#include <string>
#include <vector>

namespace zerosched::detail {

/// One line per parameter, with everything about it that all ranks must share.
std::vector<std::string> describe(const std::vector<ParameterSpec>& parameters);

/// XXH3 of the lines; equal lists have equal hashes on every machine.
int64_t hash_of(const std::vector<std::string>& lines);

/// What to tell a user whose rank `rank` has `mine` while rank 0 has `reference`: the first line that
/// differs, on both sides. Empty if the lists are equal.
std::string first_difference(
    const std::vector<std::string>& mine, const std::vector<std::string>& reference, int rank);

}  // namespace zerosched::detail
