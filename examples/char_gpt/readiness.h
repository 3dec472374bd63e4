#pragma once

#include <zerosched/session.h>

#include <exception>
#include <string>

/// What an exception says, without LibTorch's stack trace.
std::string message_of(const std::exception& error);

/// False if any rank has a problem, which the first such rank prints for all. Collective.
bool every_rank_is_ready(const zerosched::Session& session, const std::string& problem);
