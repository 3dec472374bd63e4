#pragma once

#include "checks.h"
#include "facts.h"

#include <iosfwd>
#include <vector>

namespace doctor {

struct Report {
  std::vector<Facts> ranks;
  std::vector<Finding> findings;
  std::vector<Bandwidth> bandwidth;
  Stream stream;

  int64_t count(Level level) const;
};

void print_table(const Report& report, std::ostream& out);
void print_json(const Report& report, std::ostream& out);

}  // namespace doctor
