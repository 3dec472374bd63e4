#pragma once

#include <string>

namespace zerosched::detail {

/// Writes "zerosched: rank 3 stops: message" to stderr in one piece, so that ranks do not mix their lines.
/// Does so for the first caller only: a rank that ends says why once.
void report_end(int rank, const std::string& message) noexcept;

}  // namespace zerosched::detail
