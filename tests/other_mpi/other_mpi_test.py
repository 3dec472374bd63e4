"""Builds zerosched with an MPI from the Python package index and runs what depends on MPI: conformance, failures, jobs that end
in every way, and launch/run. What is built with MPICH runs with Intel's MPI too, whose binary interface is the same.

usage: other_mpi_test.py mpich|openmpi    with the variables that CMakeLists.txt sets

Long and in need of a network, so it runs with ZEROSCHED_TEST_OTHER_MPI=1 only. Its build is kept, for the next run to go on from.
"""
import os
import re
import subprocess
import sys

import job

NAME = sys.argv[1]
VERSIONS = {"mpich": "5.0.2", "openmpi": "5.0.11", "impi-rt": "2021.18.1"}
SOURCE = os.environ["ZEROSCHED_SOURCE_DIR"]
BUILD = os.environ["ZEROSCHED_BUILD_DIR"]
# As deep as zerosched's own, for which the compiler cache has what does not depend on MPI.
OWN_BUILD = f"{BUILD}_{NAME}"
ENVIRONMENT = os.path.join(OWN_BUILD, "environment")
BIN = os.path.join(ENVIRONMENT, "bin")

TARGETS = ["comm_conformance_test", "comm_inline_progress_test", "comm_failure_test", "comm_progress_test",
           "session_program", "faults_training_program"]
TESTS = r"^(comm_(conformance|inline_progress|failure|progress)_test\.|session\.|faults_training\.)"
# What needs options that only Open MPI 4 has (--enable-recovery), or programs that are not built here. MPICH's mpiexec takes a
# rank that exits with 0 in the midst of a job for one that is done, and its exit code may be that of a rank that it has killed.
LEFT_OUT = {"openmpi": r"^session\.(killed_before|nccl_.*)$",
            "mpich": r"^(session\.(killed_before|nccl_.*|stopped_before)|faults_training\.exit_in_backward)$"}[NAME]
# What launch/run promises for every mpirun. Standard input that all ranks read is Open MPI 4's alone.
LAUNCH = ["Jobs.test_exit_codes", "Jobs.test_no_program", "Jobs.test_signals_reach_the_ranks",
          "Jobs.test_killed_takes_the_job_with_it", "Jobs.test_second_term_and_interrupt_end_at_once",
          "Jobs.test_ranks_get_environment_and_cores"]


def call(*command, timeout=3600, **more):
    print("+", *command, flush=True)
    result = subprocess.run(command, timeout=timeout, **more)
    if result.returncode != 0:
        sys.exit(f"FAILED: exit code {result.returncode}: {command}")


def cached(name):
    with open(os.path.join(BUILD, "CMakeCache.txt"), encoding="utf-8") as cache:
        return re.search(rf"^{name}:\w+=(.*)$", cache.read(), re.MULTILINE).group(1)


def install(name, folder):
    """The folder of its programs."""
    wanted = f"{name}=={VERSIONS[name]}"
    programs = os.path.join(folder, "bin")
    if not os.path.exists(os.path.join(programs, "mpiexec")):
        call(sys.executable, "-m", "venv", folder)
        call(os.path.join(programs, "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wanted)
    said = subprocess.run([os.path.join(programs, "mpiexec"), "--version"], capture_output=True, text=True, check=True,
                          env=with_programs(programs)).stdout
    if VERSIONS[name] not in said:
        sys.exit(f"FAILED: {wanted} says that it is: {said}")
    return programs


def with_programs(folder):
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def build():
    options = [f"-D{name}={cached(name)}" for name in ("CMAKE_BUILD_TYPE", "CMAKE_CXX_COMPILER", "CMAKE_C_COMPILER")]
    options.append(f"-DZEROSCHED_WERROR={cached('ZEROSCHED_WERROR')}")
    call("cmake", "-S", SOURCE, "-B", OWN_BUILD, "-G", cached("CMAKE_GENERATOR"),
         f"-DLibTorch_ROOT={os.path.dirname(os.path.dirname(cached('LibTorch_CPU_LIBRARY')))}", *options,
         "-DZEROSCHED_BUILD_EXAMPLES=OFF", "-DZEROSCHED_BUILD_DOCTOR=OFF", f"-DMPI_C_COMPILER={os.path.join(BIN, 'mpicc')}",
         f"-DMPI_CXX_COMPILER={os.path.join(BIN, 'mpicxx')}", stdout=subprocess.DEVNULL)
    with open(os.path.join(OWN_BUILD, "CMakeCache.txt"), encoding="utf-8") as cache:
        if f"={BIN}/mpiexec\n" not in cache.read():
            sys.exit("FAILED: CMake has taken another mpiexec than the one beside mpicc")
    call("cmake", "--build", OWN_BUILD, "--parallel", "2", "--target", *TARGETS)


def with_intels():
    folder = f"{BUILD}_impi"
    programs = install("impi-rt", folder)
    library = os.path.join(folder, "lib")
    environment = {**with_programs(programs), "I_MPI_ROOT": folder, "FI_PROVIDER_PATH": library,
                   "LD_LIBRARY_PATH": f"{library}:{os.environ.get('LD_LIBRARY_PATH', '')}"}
    for program in ("comm_conformance_test", "comm_failure_test", "comm_progress_test"):
        call("mpiexec", "-n", "3", os.path.join(OWN_BUILD, "bin", program), "--gtest_brief=1", timeout=300, env=environment)
    print(f"passed with Intel's MPI {VERSIONS['impi-rt']}")


if os.environ.get("ZEROSCHED_TEST_OTHER_MPI") != "1":
    job.skip("takes an hour and a network: ZEROSCHED_TEST_OTHER_MPI=1")
install(NAME, ENVIRONMENT)
build()
call("ctest", "--test-dir", OWN_BUILD, "--output-on-failure", "--no-tests=error", "-R", TESTS, "-E", LEFT_OUT)
call(sys.executable, "-B", os.path.join(SOURCE, "tests", "launch", "run_test.py"), *LAUNCH,
     env=with_programs(BIN))
print(f"passed with {NAME} {VERSIONS[NAME]}")
if NAME == "mpich":
    with_intels()
