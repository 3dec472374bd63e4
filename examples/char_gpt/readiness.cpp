#include "readiness.h"

#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <iostream>

std::string message_of(const std::exception& error) {
  const auto* libtorch = dynamic_cast<const c10::Error*>(&error);
  return libtorch != nullptr ? libtorch->what_without_backtrace() : error.what();
}

bool every_rank_is_ready(const zerosched::Session& session, const std::string& problem) {
  const auto has_problem = at::zeros({session.world_size()}, at::kInt);
  auto* flags = has_problem.mutable_data_ptr<int>();
  flags[session.rank()] = problem.empty() ? 0 : 1;
  session.communicator()->all_reduce(has_problem)->wait();
  const auto count = std::count(flags, flags + session.world_size(), 1);
  if (count == 0) return true;
  if (std::find(flags, flags + session.world_size(), 1) == flags + session.rank()) {
    const bool everywhere = count == session.world_size();
    std::cerr << "char_gpt: " << (everywhere ? "" : "on rank " + std::to_string(session.rank()) + ": ")
              << problem << "\nchar_gpt --help lists the options.\n";
  }
  return false;
}
