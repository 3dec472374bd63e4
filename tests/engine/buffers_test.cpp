// A module's buffers: each rank's own while it trains, one module's when it is evaluated, saved or exported.
#include "engine/recording_communicator.h"
#include "engine/toy.h"
#include "engine/warnings.h"
#include "io/scratch.h"
#include "support/gather.h"
#include "support/world.h"

#include <zerosched/safetensors.h>

#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <algorithm>

namespace zerosched::testing {
namespace {

// Its forward also uses the running statistics, so that buffers matter to training.
struct NetImpl : torch::nn::Module {
  NetImpl() {
    torch::manual_seed(1);
    body = register_module("body", torch::nn::Linear(4, 5));
    norm = register_module("norm", torch::nn::BatchNorm1d(5));
    table = register_buffer("table", at::arange(10));
  }
  at::Tensor forward(const at::Tensor& input) { return norm(body(input)) + 0.1 * norm->running_mean.clone(); }
  torch::nn::Linear body{nullptr};
  torch::nn::BatchNorm1d norm{nullptr};
  at::Tensor table;
};
TORCH_MODULE(Net);

std::string bytes_of(const Net& net, bool of_buffers) {
  std::string bytes;
  for (const auto& item : of_buffers ? net->named_buffers() : net->named_parameters()) {
    bytes.append(static_cast<const char*>(item.value().const_data_ptr()), item.value().nbytes());
  }
  return bytes;
}

class Buffers : public ::testing::Test {
 protected:
  const int size = world()->size();
  const int rank = world()->rank();

  void train(Net& net, ShardedOptimizer& optimizer, int64_t first, int64_t end) {
    for (int64_t step = first; step < end; ++step) {
      optimizer.zero_grad();
      const at::Tensor input = random_like(at::empty({6, 4}), step, rank, 0) + rank;
      (net->forward(input) - 1).square().mean().backward();
      optimizer.step();
    }
  }
  bool same_on_all_ranks(const Net& net) {
    const auto all = gather_texts(bytes_of(net, true));
    return std::all_of(all.begin(), all.end(), [&](const std::string& other) { return other == all[0]; });
  }
  const ShardingOptions left_alone = ShardingOptions().broadcast_buffers(false);
  const std::string differ =
      "buffers of the module differ between ranks: 'norm.running_mean', 'norm.running_var'";
};

TEST_F(Buffers, AResumedJobIsTheOneThatWentOn) {
  const Scratch scratch;
  Net net, again;
  AdamWScheduleFree optimizer(*net, world(), 0.1);
  train(net, optimizer, 0, 3);
  EXPECT_EQ(same_on_all_ranks(net), size == 1) << "the test has nothing to find";
  const std::string of_rank_0 = gather_texts(bytes_of(net, true)).front();
  optimizer.save_checkpoint(scratch / "saved");
  EXPECT_EQ(bytes_of(net, true), of_rank_0);
  train(net, optimizer, 3, 6);

  AdamWScheduleFree resumed(*again, world(), 0.5);
  resumed.load_checkpoint(scratch / "saved");
  EXPECT_EQ(bytes_of(again, true), of_rank_0);
  train(again, resumed, 3, 6);
  EXPECT_EQ(bytes_of(again, true), bytes_of(net, true)) << "each rank's own";
  EXPECT_EQ(bytes_of(again, false), bytes_of(net, false));
}

TEST_F(Buffers, EvalAndExportsMakeThemRank0s) {
  const Scratch scratch;
  Net net;
  Warnings warnings;
  AdamWScheduleFree optimizer(*net, world(), 0.1);
  const std::vector<std::function<void()>> uses = {[&] { optimizer.eval(); },
      [&] { (void)optimizer.eval_scope(); }, [&] { export_safetensors(optimizer, scratch / "x"); },
      [&] { optimizer.save_checkpoint(scratch / "c"); }};
  for (const auto& use : uses) {
    train(net, optimizer, 0, 2);
    const std::string of_rank_0 = gather_texts(bytes_of(net, true)).front();
    EXPECT_EQ(same_on_all_ranks(net), size == 1);
    use();
    EXPECT_EQ(bytes_of(net, true), of_rank_0);
    optimizer.train();
  }
  EXPECT_TRUE(warnings.with(differ).empty()) << "it is what BatchNorm does, and they agree now";
}

TEST_F(Buffers, OrLeaveThemAndSaySo) {
  const Scratch scratch;
  Net net;
  Warnings warnings;
  AdamWScheduleFree optimizer(*net, world(), 0.1, left_alone);
  train(net, optimizer, 0, 2);
  const std::string mine = bytes_of(net, true);
  const std::string of_rank_0 = gather_texts(mine).front();
  optimizer.eval();
  optimizer.save_checkpoint(scratch / "saved");
  EXPECT_EQ(bytes_of(net, true), mine);
  EXPECT_EQ(warnings.with(differ).size(), rank == 0 && size > 1 ? 1U : 0U);
  EXPECT_EQ(warnings.with("checkpoints and exports hold rank 0's").size(), rank == 0 && size > 1 ? 1U : 0U);
  optimizer.train();
  optimizer.load_checkpoint(scratch / "saved");
  EXPECT_EQ(bytes_of(net, true), of_rank_0);
}

TEST_F(Buffers, NothingTravelsWhenTheyAgree) {
  const auto log = std::make_shared<Log>();
  Net net;
  AdamWScheduleFree optimizer(*net, std::make_shared<RecordingCommunicator>(world(), log), 0.1);
  const auto broadcasts_of_eval = [&] {
    log->take();
    optimizer.eval();
    const auto events = log->take();
    optimizer.train();
    return std::count(events.begin(), events.end(), "broadcast");
  };
  train(net, optimizer, 0, 1);
  const auto first = broadcasts_of_eval();
  const auto quiet = broadcasts_of_eval();  // what eval() compares besides
  EXPECT_EQ(first - quiet, size > 1 ? 2 : 0) << "neither the table nor the count";
  EXPECT_EQ(broadcasts_of_eval(), quiet);
  net->table[3] += rank;
  EXPECT_EQ(broadcasts_of_eval() - quiet, size > 1 ? 1 : 0);
  EXPECT_TRUE(same_on_all_ranks(net));
}

TEST_F(Buffers, ModulesWithoutThemSendNothing) {
  const auto events_of_eval = [](const Trainable& what) {
    const auto log = std::make_shared<Log>();
    AdamWScheduleFree optimizer(what, std::make_shared<RecordingCommunicator>(world(), log));
    log->take();
    optimizer.eval();
    return log->take();
  };
  torch::nn::Linear layer(3, 4), other(3, 4);
  EXPECT_EQ(events_of_eval(*layer), events_of_eval({ParameterGroup(other->named_parameters())}));
}

TEST_F(Buffers, RanksMustAgreeOnTheOption) {
  if (size == 1) return;
  Net net;
  expect_error([&] { AdamWScheduleFree(*net, world(), {}, rank == 0 ? left_alone : ShardingOptions()); },
      {"broadcast_buffers=0", "broadcast_buffers=1"});
}

}  // namespace
}  // namespace zerosched::testing
