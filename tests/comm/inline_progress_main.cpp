#include "support/run.h"

int main(int argc, char** argv) {
  return zerosched::testing::run_all_tests(argc, argv, zerosched::testing::ThreadLevel::funneled);
}
