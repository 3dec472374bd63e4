// A graph network that passes messages along the bonds of molecules: how well they dissolve in water.

#include "task.h"

#include <torch/nn.h>

namespace {

using namespace torch::nn;  // NOLINT(google-build-using-namespace): the layers' names

constexpr int64_t kBondTypes = 4;
constexpr int64_t kWidth = 64;
constexpr int64_t kLayers = 4;

/// Some molecules as one graph whose parts are not connected.
struct Graph {
  torch::Tensor atoms;               ///< features, [atoms, 25]
  torch::Tensor from, to, bond;      ///< of each bond, once in each direction, [2 bonds] int64
  torch::Tensor molecule;            ///< of each atom, [atoms] int64
  torch::Tensor atoms_per_molecule;  ///< [molecules, 1]
};

/// u_i = x_i + sum over neighbours j of relu(x_j + e_ij), x + B relu(A LayerNorm(u)).
class LayerImpl : public Module {
 public:
  LayerImpl()
      : bonds(register_module("bonds", Embedding(kBondTypes, kWidth))),
        norm(register_module("norm", LayerNorm(LayerNormOptions({kWidth})))),
        a(register_module("a", Linear(kWidth, kWidth))),
        b(register_module("b", Linear(kWidth, kWidth))) {}

  torch::Tensor forward(const torch::Tensor& x, const Graph& graph) {
    const auto messages = (x.index_select(0, graph.from) + bonds(graph.bond)).relu();
    const auto u = x.index_add(0, graph.to, messages);
    return x + b(a(norm(u)).relu());
  }

 private:
  Embedding bonds;
  LayerNorm norm;
  Linear a, b;
};
TORCH_MODULE(Layer);

class MessagePassingImpl : public Module {
 public:
  explicit MessagePassingImpl(int64_t features)
      : input(register_module("input", Linear(features, kWidth))),
        layers(register_module("layers", ModuleList())),
        hidden(register_module("hidden", Linear(2 * kWidth, kWidth))),
        output(register_module("output", Linear(kWidth, 1))) {
    for (int64_t i = 0; i < kLayers; ++i) layers->push_back(Layer());
  }

  /// -> [molecules].
  torch::Tensor forward(const Graph& graph) {
    auto x = input(graph.atoms);
    for (const auto& layer : *layers) x = layer->as<Layer>()->forward(x, graph);
    const auto sum = torch::zeros({graph.atoms_per_molecule.size(0), kWidth}).index_add(0, graph.molecule, x);
    // A tenth, because molecules have some ten atoms: of the size of the mean.
    const auto readout = torch::cat({sum / 10, sum / graph.atoms_per_molecule}, 1);
    return output(hidden(readout).relu()).squeeze(1);
  }

 private:
  Linear input;
  ModuleList layers;
  Linear hidden, output;
};
TORCH_MODULE(MessagePassing);

/// Molecules one after the other: the atoms of the i-th are those from atom_begin[i] up to atom_begin[i + 1].
struct Molecules {
  Molecules(const Arrays& arrays, const std::string& part)
      : atoms(arrays.real(part + "_atoms")),
        bonds(arrays[part + "_bonds"].to(torch::kLong)),
        atom_begin(arrays[part + "_atom_begin"]),
        bond_begin(arrays[part + "_bond_begin"]),
        log_solubility(arrays.real(part + "_log_solubility")) {}

  Graph graph_of(const torch::Tensor& samples) const {
    const auto atoms_from = atom_begin.accessor<int64_t, 1>();
    const auto bonds_from = bond_begin.accessor<int64_t, 1>();
    const auto bond = bonds.accessor<int64_t, 2>();
    const auto sample = samples.accessor<int64_t, 1>();
    std::vector<torch::Tensor> features;
    std::vector<int64_t> from, to, type, molecule;
    for (int64_t i = 0; i < sample.size(0); ++i) {
      const auto first =
          static_cast<int64_t>(molecule.size());  // number of this molecule's first atom in the graph
      const int64_t begin = atoms_from[sample[i]], end = atoms_from[sample[i] + 1];
      features.push_back(atoms.slice(0, begin, end));
      molecule.insert(molecule.end(), static_cast<size_t>(end - begin), i);
      for (int64_t j = bonds_from[sample[i]]; j < bonds_from[sample[i] + 1]; ++j) {
        from.insert(from.end(), {first + bond[j][0], first + bond[j][1]});
        to.insert(to.end(), {first + bond[j][1], first + bond[j][0]});
        type.insert(type.end(), 2, bond[j][2] - 1);
      }
    }
    const auto counts = atom_begin.index_select(0, samples + 1) - atom_begin.index_select(0, samples);
    return {torch::cat(features), torch::tensor(from, torch::kLong), torch::tensor(to, torch::kLong),
        torch::tensor(type, torch::kLong), torch::tensor(molecule, torch::kLong),
        counts.unsqueeze(1).to(atoms.scalar_type())};
  }

  torch::Tensor atoms;  // features, [atoms, 25]
  torch::Tensor bonds;  // (atom, atom, type), atoms counted in the molecule from 0, types from 1
  torch::Tensor atom_begin, bond_begin;  // [molecules + 1] int64
  torch::Tensor log_solubility;          // [molecules], log10 of mol/l
};

class Solubility : public Task {
 public:
  explicit Solubility(const Arrays& arrays)
      : train_(arrays, "train"),
        test_(arrays, "test"),
        mean_(train_.log_solubility.mean().item<double>()),
        deviation_(train_.log_solubility.std(/*unbiased=*/false).item<double>()),
        model_(train_.atoms.size(1)) {}

  Module& module() override { return *model_; }
  int64_t training_samples() const override { return train_.log_solubility.size(0); }
  int64_t evaluation_samples() const override { return test_.log_solubility.size(0); }

  Loss loss(const torch::Tensor& samples) override {
    const auto target = (train_.log_solubility.index_select(0, samples) - mean_) / deviation_;
    return {torch::mse_loss(model_(train_.graph_of(samples)), target), static_cast<double>(samples.size(0))};
  }

  torch::Tensor evaluate(int64_t first, int64_t end) override {
    const auto predicted = model_(test_.graph_of(torch::arange(first, end))) * deviation_ + mean_;
    const auto difference = (predicted - test_.log_solubility.slice(0, first, end)).to(torch::kDouble);
    return torch::stack({difference.abs().sum(), difference.square().sum()});
  }

  std::vector<Metric> metrics(const torch::Tensor& sums, int64_t samples) const override {
    const auto means = sums / static_cast<double>(samples);
    return {{"mae", means[0].item<double>()}, {"rmse", means[1].sqrt().item<double>()}};
  }

 private:
  Molecules train_, test_;
  double mean_, deviation_;  // of the training targets
  MessagePassing model_;
};

}  // namespace

std::unique_ptr<Task> make_message_passing(const Arrays& arrays) {
  return std::make_unique<Solubility>(arrays);
}
