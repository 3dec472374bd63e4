#include "base/check.h"
#include "io/module_file.h"

#include "comm/agree.h"
#include "engine/equal_on_ranks.h"
#include "engine/parameter_claim.h"
#include "engine/savable.h"
#include "io/checkpoint_names.h"
#include "io/file.h"
#include "io/folder_contents.h"
#include "io/folder_lock.h"
#include "io/safetensors.h"

#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>

#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

namespace zerosched::detail {

namespace {

/// The file that rank 0 fills, tensor by tensor. Goes with the object unless it is finished.
class Export {
 public:
  Export(const OptimizerState& state, std::string path)
      : executor_(state.executor()), model_(state.model()), path_(std::move(path)) {
    for (const ParameterSpec& spec : model_.specs) add(spec.name, spec.dtype, spec.sizes);
    for (size_t f = 0; f < model_.frozen.size(); ++f) add(model_.frozen_names[f], model_.frozen[f]);
    for (size_t b = 0; b < model_.buffers.size(); ++b) add(model_.buffer_names[b], model_.buffers[b]);
    // What Python loaders look for.
    const std::string header = make_safetensors_header(entries_, {{"format", "pt"}});
    data_begin_ = header.size();
    for (size_t i = 0; i < entries_.size(); ++i) index_[entries_[i].name] = i;
    lock_folder();
    file_.emplace(partial(), data_begin_ + entries_.back().end);
    file_->write(header.data(), header.size(), 0);
    for (size_t f = 0; f < model_.frozen.size(); ++f) write(model_.frozen_names[f], model_.frozen[f]);
    for (size_t b = 0; b < model_.buffers.size(); ++b) write(model_.buffer_names[b], model_.buffers[b]);
  }

  Export(const Export&) = delete;
  Export& operator=(const Export&) = delete;

  /// Under all of its names.
  void write(const std::string& name, const at::Tensor& tensor) {
    const auto names = names_of(model_, name);
    uint64_t done = 0;
    executor_.read(tensor.detach(), [&](const std::byte* bytes, int64_t count) {
      for (const std::string& each : names) {
        file_->write(bytes, static_cast<size_t>(count), data_begin_ + entries_[index_.at(each)].begin + done);
      }
      done += static_cast<uint64_t>(count);
    });
  }

  void finish() {
    lock_->check_held();
    file_->finish_as(path_);
    sync_folder(folder_of(path_));
  }

 private:
  void lock_folder() {
    try {
      lock_.emplace(folder_of(path_), [](const std::string& what) { TORCH_WARN("zerosched: ", what); });
      take_up_leftovers(folder_of(path_));
    } catch (const std::exception& error) {
      throw std::runtime_error(path_ + ": cannot be written: " + error.what());
    }
  }

  std::string partial() const {
    const size_t name = path_.rfind('/') + 1;  // 0 without a slash
    return path_.substr(0, name) + hidden_name(path_.substr(name), kExporting);
  }

  void add(const std::string& name, c10::ScalarType dtype, const std::vector<int64_t>& sizes) {
    for (const std::string& each : names_of(model_, name)) entries_.push_back({each, dtype, sizes});
  }
  void add(const std::string& name, const at::Tensor& tensor) {
    add(name, tensor.scalar_type(), tensor.sizes().vec());
  }

  Executor& executor_;
  const Model& model_;
  std::string path_;
  std::vector<SafetensorsEntry> entries_;
  std::map<std::string, size_t> index_;
  uint64_t data_begin_ = 0;
  std::optional<FolderLock> lock_;
  std::optional<NewFile> file_;
};

// What others train is written as it is.
void check_others_are_at_x(const Model& model) {
  for (size_t f = 0; f < model.frozen.size(); ++f) {
    ZEROSCHED_CHECK(ParameterClaim::is_at_x(model.frozen[f]), "export_safetensors: parameter '",
        model.frozen_names[f],
        "' is trained by another optimizer, which has it at y, and the file is to have all at x: call eval() "
        "of that optimizer first.");
  }
}

}  // namespace

void export_safetensors(Savable& optimizer, const std::string& path, const std::string& point) {
  optimizer.check();
  Communicator& communicator = *optimizer.communicator();
  check_same_on_all_ranks(communicator, {"export_safetensors(\"" + path + "\", \"" + point + "\")"});
  const at::NoGradGuard no_grad;
  std::unique_ptr<Export> file;  // on rank 0
  agree_on(communicator, [&] {
    ZEROSCHED_CHECK(point == "x" || point == "y", "export_safetensors: the point is \"", point,
        "\"; expected \"x\" or \"y\".");
    const std::string why_not = optimizer.why_not_savable();
    ZEROSCHED_CHECK(why_not.empty(), "export_safetensors: ", why_not);
  });
  optimizer.check_in_step("export_safetensors: ");
  optimizer.settle_module();
  agree_on(communicator, [&] {
    if (point == "x") check_others_are_at_x(optimizer.state().model());
    if (communicator.rank() == 0) file = std::make_unique<Export>(optimizer.state(), path);
  });

  // A disk that fills up on rank 0 must not keep it from the collectives that the others are in.
  std::string error;
  for (size_t b = 0; b < optimizer.state().layout().buckets.size(); ++b) {
    const at::Tensor whole = optimizer.gathered(static_cast<int64_t>(b), point == "x" ? Point::x : Point::y);
    if (!file || !error.empty()) continue;
    try {
      for (const Slot& slot : optimizer.state().layout().buckets[b].slots) {
        const ParameterSpec& spec = optimizer.state().model().specs[static_cast<size_t>(slot.parameter)];
        file->write(spec.name, whole.as_strided(spec.sizes, spec.strides, slot.offset));
      }
    } catch (const std::exception& exception) {
      error = message_of(exception);
    }
  }
  agree_on(communicator, [&] {
    const std::unique_ptr<Export> last_use = std::move(file);  // what is left goes before the others are told
    if (!error.empty()) throw std::runtime_error(error);
    if (last_use) last_use->finish();
  });
}

}  // namespace zerosched::detail
