#include "arrays.h"

#include <ATen/ops/empty.h>
#include <c10/core/DefaultDtype.h>
#include <nlohmann/json.hpp>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <vector>

namespace {

constexpr int kFormat = 2;  // that of prepare_data.py

at::ScalarType dtype_of(const std::string& name) {
  static const std::map<std::string, at::ScalarType> dtypes = {{"uint8", at::kByte}, {"int8", at::kChar},
      {"int32", at::kInt}, {"int64", at::kLong}, {"float32", at::kFloat}, {"float64", at::kDouble}};
  const auto found = dtypes.find(name);
  if (found == dtypes.end()) throw std::runtime_error("there is no dtype " + name);
  return found->second;
}

at::Tensor read_array(const std::string& path, const nlohmann::json& description) {
  auto array = at::empty(description.at("shape").get<std::vector<int64_t>>(),
      dtype_of(description.at("dtype").get<std::string>()));
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path + ": " + std::strerror(errno));
  file.read(static_cast<char*>(array.mutable_data_ptr()), static_cast<std::streamsize>(array.nbytes()));
  if (!file || file.peek() != std::ifstream::traits_type::eof()) {
    throw std::runtime_error(
        path + " does not hold the " + std::to_string(array.nbytes()) + " bytes of its array");
  }
  return array;
}

}  // namespace

Arrays::Arrays(const std::string& folder, const std::string& task)
    : description_(folder + "/" + task + ".json") {
  const std::string advice = "; examples/battery/prepare_data.py " + task + " writes it";
  std::ifstream file(description_);
  if (!file) throw std::runtime_error("cannot read " + description_ + ": " + std::strerror(errno) + advice);
  try {
    const auto description = nlohmann::json::parse(file);
    if (description.at("format") != kFormat) throw std::runtime_error("it is of another version");
    for (const auto& [name, array] : description.at("arrays").items()) {
      arrays_[name] = read_array(folder + "/" + array.at("file").get<std::string>(), array);
    }
  } catch (const std::exception& error) {
    throw std::runtime_error(description_ + " cannot be used: " + error.what() + advice);
  }
}

const at::Tensor& Arrays::operator[](const std::string& name) const {
  const auto found = arrays_.find(name);
  if (found == arrays_.end()) throw std::runtime_error(description_ + " names no array " + name);
  return found->second;
}

at::Tensor Arrays::real(const std::string& name) const {
  return (*this)[name].to(c10::get_default_dtype_as_scalartype());
}
