#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

/// The arrays of one task, as prepare_data.py has written them.
class Arrays {
 public:
  /// Reads `folder`/`task`.json and all that it names. Throws std::runtime_error, which says what to do, if a file is
  /// missing or is not as the JSON file says.
  Arrays(const std::string& folder, const std::string& task);

  /// By name, in the dtype and shape of the file. Throws std::runtime_error if there is none of that name.
  const at::Tensor& operator[](const std::string& name) const;
  /// As `operator[]`, in LibTorch's default dtype, which --dtype sets: what a model takes as input.
  at::Tensor real(const std::string& name) const;

 private:
  std::string description_;  // path of the JSON file
  std::map<std::string, at::Tensor> arrays_;
};
