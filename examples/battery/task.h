#pragma once

#include "arrays.h"

#include <torch/nn.h>
#include <zerosched/session.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

/// The mean loss over some samples, and its weight in the mean over all ranks' samples: how many samples, or tokens, it
/// is the mean of.
struct Loss {
  torch::Tensor mean;
  double weight = 0;
};

/// A value that evaluation gives, such as {"error", 0.09}.
struct Metric {
  std::string name;
  double value = 0;
};

/// A model, its data, its loss and its metrics: all that the trainer has to know of them.
class Task {
 public:
  virtual ~Task() = default;

  virtual torch::nn::Module& module() = 0;

  /// How many there are to draw batches from.
  virtual int64_t training_samples() const = 0;
  /// At the parameters that the module holds, of the training samples with the numbers `samples`, [n] int64: a rank's
  /// part of the batch.
  virtual Loss loss(const torch::Tensor& samples) = 0;

  /// How many there are to evaluate.
  virtual int64_t evaluation_samples() const = 0;
  /// How many of them will do between the main read-off points, where evaluation takes long.
  virtual int64_t quick_evaluation_samples() const { return evaluation_samples(); }
  /// To be done to the module, which holds x and is in eval mode, before it is evaluated. Returns whether it can be: not
  /// where training has diverged. Collective.
  virtual bool prepare_evaluation(const zerosched::Session& /*session*/) { return true; }
  /// Sums over the evaluation samples from `first` up to `end`, float64: a rank's part. Without gradients.
  virtual torch::Tensor evaluate(int64_t first, int64_t end) = 0;
  /// Of the sums over all `samples` samples; the first is what tasks are compared by, and less is better.
  virtual std::vector<Metric> metrics(const torch::Tensor& sums, int64_t samples) const = 0;
};

/// What a task is trained with unless the command line says otherwise.
struct Recipe {
  std::string optimizer;
  int64_t steps = 0;
  int64_t batch = 0;  ///< samples per step, of all ranks together
};

/// What --task may be.
std::vector<std::string> task_names();
/// Of the task of that name.
const Recipe& recipe_of(const std::string& task);
/// Reads the data from `folder` and makes the model with LibTorch's generator as it is. Throws std::runtime_error if the
/// data is not there, or if the task cannot be cut over this session's ranks.
std::unique_ptr<Task> make_task(
    const std::string& task, const std::string& folder, const zerosched::Session& session, int64_t batch);

/// @{
/// One per file, named after it.
std::unique_ptr<Task> make_transformer(const Arrays& arrays);
std::unique_ptr<Task> make_lstm(const Arrays& arrays);
std::unique_ptr<Task> make_convnet(const Arrays& arrays, const zerosched::Session& session);
std::unique_ptr<Task> make_message_passing(const Arrays& arrays);
std::unique_ptr<Task> make_dlrm(const Arrays& arrays);
std::unique_ptr<Task> make_logistic_regression(const Arrays& arrays);
/// @}
