#pragma once

#include <optional>
#include <string>

// What the entries of a folder with checkpoints are called. README.md has what each means.
namespace zerosched::detail {

inline constexpr const char* kLatest = "latest";
inline constexpr const char* kNewLatest = ".latest.new";

/// Suffixes of hidden entries: ".step_01000.partial" belongs to "step_01000".
inline constexpr const char* kPartial = ".partial";  ///< being written, or replaced by an exchange of names
inline constexpr const char* kReplaced = ".old";     ///< replaced where names cannot be exchanged
inline constexpr const char* kDeleted = ".deleted";  ///< half deleted
inline constexpr const char* kExporting = ".exporting";  ///< a file that export_safetensors() writes

/// ".step_01000.partial" of "step_01000" and ".partial"
std::string hidden_name(const std::string& name, const char* suffix);
/// "step_01000" of ".step_01000.partial" and ".partial"; nothing for other names.
std::optional<std::string> name_behind(const std::string& hidden, const char* suffix);

/// Whether a hidden entry is an export that is not finished, of any name.
bool is_export(const std::string& hidden);

/// Whether a checkpoint can be called so: a name of its own, not hidden, not "latest".
bool is_checkpoint_name(const std::string& name);
/// Whether a checkpoint's folder has files of this name, finished or not.
bool is_checkpoint_file(const std::string& name);
/// ".nfs000000000123456700000001": what an NFS client keeps of a deleted file that a process still reads.
bool is_kept_by_nfs(const std::string& name);
/// "optimizer_0": the folder with one of several optimizers.
std::string part_name(size_t index);
/// Whether part_name() gives this name for some index.
bool is_part_name(const std::string& name);

/// Whether two checkpoints are of one sequence: their names differ in their numbers only ("step_100", "step_2000"). Names
/// without a number ("best") are one sequence.
bool are_of_one_sequence(const std::string& a, const std::string& b);

}  // namespace zerosched::detail
