#pragma once

#include "checks.h"

#include <zerosched/communicator.h>

#include <string>

namespace doctor {

/// Uses a folder as checkpoints do: every rank writes a file, syncs it and renames it, and looks for that of
/// rank 0. Leaves nothing behind. Collective.
DirectoryUse use_directory(zerosched::Communicator& communicator, const std::string& path);

}  // namespace doctor
