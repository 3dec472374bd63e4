#pragma once

#include <string>

// `latest` in a folder with checkpoints, which names the newest: a link, or where there can be none, a file with the name
// and a line feed.
namespace zerosched::detail {

/// Path of what it names, there or not; empty if there is no `latest`, or something else is called so.
std::string read_latest(const std::string& root);
/// Whether `latest` is not there or can be replaced: somebody's own file or folder is not.
bool latest_is_ours(const std::string& root);
/// Makes what becomes `latest`, so that a file system that takes neither is noticed before anything is replaced.
void prepare_latest(const std::string& root, const std::string& name);
/// What prepare_latest() made becomes `latest`.
void publish_latest(const std::string& root);

}  // namespace zerosched::detail
