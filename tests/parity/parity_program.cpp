// Takes optimizer steps on given gradients and writes the state that comes out:
//   parity_program FOLDER...
// A folder holds case.json (see parity_test.py), initial.bin: the parameters one after the other, and gradients.bin:
// for each step and rank the gradients that its "present" says are there. Written by rank 0: result.bin, for each
// parameter what the case's "state" names. All numbers are in the case's dtype, results in float64.
#include <zerosched/zerosched.h>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

using nlohmann::json;
using zerosched::NamedParameters;

at::ScalarType dtype_of(const std::string& name) {
  static const std::map<std::string, at::ScalarType> dtypes = {
      {"float64", at::kDouble}, {"float32", at::kFloat}, {"bfloat16", at::kBFloat16}};
  return dtypes.at(name);
}

/// The tensors of one file, one after the other.
class Reader {
 public:
  Reader(const std::string& path, at::ScalarType dtype) : dtype_(dtype) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("cannot read " + path);
    bytes_.assign(std::istreambuf_iterator<char>(file), {});
  }

  at::Tensor next(const std::vector<int64_t>& shape) {
    at::Tensor tensor = at::empty(shape, dtype_);
    if (at_ + tensor.nbytes() > bytes_.size()) throw std::runtime_error("a case file is too short");
    std::copy_n(bytes_.begin() + static_cast<std::ptrdiff_t>(at_), tensor.nbytes(),
        static_cast<char*>(tensor.data_ptr()));
    at_ += tensor.nbytes();
    return tensor;
  }

 private:
  at::ScalarType dtype_;
  std::vector<char> bytes_;
  size_t at_ = 0;
};

using Groups = std::vector<NamedParameters>;
using CommunicatorPointer = std::shared_ptr<zerosched::Communicator>;

/// The case's options by their names there; betas are two of ours.
std::unique_ptr<zerosched::ListedOptions> options_of(const std::string& optimizer, const json& given) {
  auto options = zerosched::default_options(optimizer);
  const auto set = [&](const std::string& name, double value) {
    if (!options->set(name, value)) throw std::runtime_error(optimizer + " has no option " + name);
  };
  for (const auto& [name, value] : given.items()) {
    if (name == "betas") {
      set("beta1", value[0]);
      set("beta2", value[1]);
    } else {
      set(name, value.is_boolean() ? static_cast<double>(value.get<bool>()) : value.get<double>());
    }
  }
  return options;
}

std::unique_ptr<zerosched::ShardedOptimizer> make_optimizer(
    const json& job, const Groups& parameters, const CommunicatorPointer& communicator) {
  const auto sharding = zerosched::ShardingOptions()
                            .bucket_bytes(job.at("bucket_bytes"))
                            .first_bucket_bytes(job.at("bucket_bytes"))
                            .gradients(job.at("averaged") ? zerosched::GradientInput::already_averaged
                                                          : zerosched::GradientInput::local)
                            .overlap_backward(job.at("overlap"));
  const std::string name = job.at("optimizer");
  std::vector<zerosched::ParameterGroup> groups;
  for (size_t i = 0; i < parameters.size(); ++i) {
    groups.emplace_back(parameters[i], *options_of(name, job.at("groups")[i].at("options")));
  }
  return zerosched::make_optimizer(
      name, groups, communicator, *options_of(name, job.at("groups")[0].at("options")), sharding);
}

void run(const std::string& folder, const CommunicatorPointer& communicator) {
  json job;
  std::ifstream(folder + "/case.json") >> job;
  const at::ScalarType dtype = dtype_of(job.at("dtype"));

  std::vector<NamedParameters> groups;
  NamedParameters all;
  Reader initial(folder + "/initial.bin", dtype);
  for (const json& group : job.at("groups")) {
    groups.emplace_back();
    for (const json& shape : group.at("shapes")) {
      all.emplace_back("p" + std::to_string(all.size()), initial.next(shape).requires_grad_());
      groups.back().push_back(all.back());
    }
  }
  const auto optimizer = make_optimizer(job, groups, communicator);

  Reader gradients(folder + "/gradients.bin", dtype);
  for (const json& step : job.at("steps")) {
    at::Tensor loss;
    optimizer->zero_grad();
    for (size_t source = 0; source < step.at("present").size(); ++source) {
      const std::string present = step.at("present")[source];
      for (size_t i = 0; i < all.size(); ++i) {
        if (present[i] != '1') continue;
        const at::Tensor gradient = gradients.next(all[i].second.sizes().vec());
        const bool mine = job.at("averaged") || static_cast<int>(source) == communicator->rank();
        if (!mine) continue;
        if (job.at("averaged")) {
          all[i].second.mutable_grad() = gradient;
        } else {
          const at::Tensor term = (all[i].second * gradient).sum();  // whose gradient is `gradient`
          loss = loss.defined() ? loss + term : term;
        }
      }
    }
    if (loss.defined()) loss.backward();
    for (size_t i = 0; i < groups.size(); ++i)
      optimizer->param_groups()[i].options().set_lr(step.at("lr")[i]);
    optimizer->step();
  }

  std::map<std::string, std::map<std::string, at::Tensor>> state;
  for (const std::string which : job.at("state")) state[which] = optimizer->full_state(which);
  if (communicator->rank() != 0) return;
  std::ofstream result(folder + "/result.bin", std::ios::binary);
  for (const auto& named : all) {
    for (const std::string which : job.at("state")) {
      const at::Tensor tensor = state[which].at(named.first).to(at::kDouble).contiguous();
      result.write(
          static_cast<const char*>(tensor.data_ptr()), static_cast<std::streamsize>(tensor.nbytes()));
    }
  }
  if (!result.flush()) throw std::runtime_error("cannot write " + folder + "/result.bin");
}

}  // namespace

int main(int argc, char** argv) {
  zerosched::Session session(argc, argv, zerosched::SessionOptions().timeout(60));
  at::set_num_threads(1);
  for (int i = 1; i < argc; ++i) run(argv[i], session.communicator());
}
