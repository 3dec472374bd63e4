#pragma once

#include <filesystem>

// Deleting, of what a checkpoint consists of and nothing else.
namespace zerosched::detail {

/// Whether a folder has only files that a checkpoint consists of, in it and in the folders of several optimizers, or
/// nothing.
bool holds_only_ours(const std::filesystem::path& folder);

/// Does nothing if there is no such folder. Throws std::runtime_error if it holds anything else than a checkpoint, whole or
/// not, or is no folder.
void remove_folder(const std::filesystem::path& folder);

/// A checkpoint goes: renamed first, as a folder that is half deleted must not have a checkpoint's name.
void remove_checkpoint(const std::filesystem::path& path);

/// Cleans a folder that is locked of what killed jobs left, and nothing else: checkpoints that were whole and only waited
/// for their names get them, those that were not go, and so do exports that were not finished. What cannot be read, renamed
/// or deleted stays for the next time.
void take_up_leftovers(const std::filesystem::path& root);

}  // namespace zerosched::detail
