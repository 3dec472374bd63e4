#include "task.h"

#include <functional>
#include <map>
#include <stdexcept>

namespace {

struct Entry {
  Recipe recipe;
  std::function<std::unique_ptr<Task>(const Arrays&, const zerosched::Session&)> make;
  // Whether every rank's part of a batch must be of the same size.
  bool equal_parts = false;
};

template <typename Make>
auto alone(Make make) {
  return [make](const Arrays& arrays, const zerosched::Session&) { return make(arrays); };
}

const std::map<std::string, Entry>& table() {
  static const std::map<std::string, Entry> entries = {
      {"transformer", {{"adamw-schedulefree", 1024, 16}, alone(make_transformer)}},
      {"lstm", {{"adamw-schedulefree", 3200, 64}, alone(make_lstm)}},
      {"cnn", {{"sgd-schedulefree", 2800, 64}, make_convnet, true}},
      {"gnn", {{"adamw-schedulefree", 1600, 32}, alone(make_message_passing)}},
      {"recommender", {{"adamw-schedulefree", 8192, 16}, alone(make_dlrm)}},
      {"convex", {{"adamw-schedulefree", 16000, 16}, alone(make_logistic_regression)}}};
  return entries;
}

}  // namespace

std::vector<std::string> task_names() {
  std::vector<std::string> names;
  for (const auto& entry : table()) names.push_back(entry.first);
  return names;
}

const Recipe& recipe_of(const std::string& task) { return table().at(task).recipe; }

std::unique_ptr<Task> make_task(
    const std::string& task, const std::string& folder, const zerosched::Session& session, int64_t batch) {
  const Entry& entry = table().at(task);
  if (batch < session.world_size() || (entry.equal_parts && batch % session.world_size() != 0)) {
    throw std::runtime_error("--batch " + std::to_string(batch) + " cannot be cut over " +
                             std::to_string(session.world_size()) + " ranks" +
                             (entry.equal_parts ? " in parts of equal size, which its BatchNorm needs" : ""));
  }
  auto made = entry.make(Arrays(folder, task), session);
  if (batch > made->training_samples()) {
    throw std::runtime_error("--batch " + std::to_string(batch) + " is more than the " +
                             std::to_string(made->training_samples()) + " samples to train on");
  }
  return made;
}
