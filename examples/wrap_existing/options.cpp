#include "options.h"

#include <CLI/CLI.hpp>

#include <filesystem>
#include <limits>

namespace {

template <typename Number>
CLI::Validator number_in(Number low, Number high, const std::string& description) {
  return CLI::Validator(
      [=](std::string& text) -> std::string {
        Number value = 0;
        // Written so that NaN fails.
        if (CLI::detail::lexical_cast(text, value) && value >= low && value <= high) return {};
        return "got " + text + ", expected " + description;
      },
      description);
}

}  // namespace

std::string parse_command_line(int argc, char** argv, Options& options, std::string& help) {
  const std::string program = std::filesystem::path(argv[0]).filename();
  CLI::App app("Trains a small network on Fashion-MNIST, data-parallel over MPI ranks.", program);
  app.option_defaults()->always_capture_default();

  const auto count = number_in<int64_t>(1, 1 << 20, "an integer from 1 to 1048576");
  app.add_option("--data", options.data, "folder of the IDX files, gzipped or not")
      ->check(CLI::ExistingDirectory);
  app.add_option("--epochs", options.epochs, "passes over the training images")->check(count);
  app.add_option("--steps", options.steps, "stop after this many optimizer steps (0: after the epochs)")
      ->check(number_in<int64_t>(0, int64_t{1} << 40, "an integer that is not negative"));
  app.add_option("--batch", options.batch, "images per rank and step")->check(count);
  app.add_option("--lr", options.lr, "learning rate")
      ->check(number_in<double>(std::numeric_limits<double>::min(), 1e300, "a positive number"));
  app.add_option("--threads", options.threads, "threads per rank")
      ->check(number_in<int64_t>(1, 1024, "an integer from 1 to 1024"));
  app.add_option("--seed", options.seed, "of parameters and of the order of images")
      ->check(number_in<int64_t>(0, std::numeric_limits<int32_t>::max(), "an integer that is not negative"));
  app.add_flag("--json", options.json, "end with one JSON object on standard output");

  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    help = app.help();
  } catch (const CLI::ParseError& error) {
    return error.what();
  }
  return {};
}
