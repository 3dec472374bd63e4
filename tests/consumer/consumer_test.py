"""Installs zerosched, builds projects outside its tree against it, and runs them.

usage: consumer_test.py CASE    with the variables that CMakeLists.txt sets
"""
import contextlib
import os
import re
import shutil
import subprocess
import sys

import job
import symbols

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.environ["ZEROSCHED_SOURCE_DIR"]
BUILD = os.environ["ZEROSCHED_BUILD_DIR"]
SCRATCH = os.environ["ZEROSCHED_SCRATCH"]
PREFIX = os.path.join(SCRATCH, "prefix")
HAS_MPI = os.environ["ZEROSCHED_MPI"] == "1"


def check(condition, why):
    if not condition:
        sys.exit(f"FAILED: {why}")


def call(*command, expect=0):
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    check((result.returncode == 0) == (expect == 0), f"exit code {result.returncode}: {command}\n{result.stdout}")
    return result.stdout


def cached(name):
    with open(os.path.join(BUILD, "CMakeCache.txt"), encoding="utf-8") as cache:
        return re.search(rf"^{name}:\w+=(.*)$", cache.read(), re.MULTILINE).group(1)


def configure(source, build, *options, expect=0):
    """A fresh build folder, with the compiler, generator and LibTorch of zerosched's own build."""
    shutil.rmtree(build, ignore_errors=True)
    common = [f"-D{name}={cached(name)}" for name in ("CMAKE_BUILD_TYPE", "CMAKE_CXX_COMPILER", "CMAKE_C_COMPILER")]
    if os.environ["ZEROSCHED_LAUNCHER"]:
        # Objects that zerosched's own build made already need not be made again.
        common += [f"-DCMAKE_{language}_COMPILER_LAUNCHER={os.environ['ZEROSCHED_LAUNCHER']}" for language in ("CXX", "CUDA")]
    return call("cmake", "-S", source, "-B", build, "-G", cached("CMAKE_GENERATOR"),
                f"-DLibTorch_ROOT={os.path.dirname(os.path.dirname(cached('LibTorch_CPU_LIBRARY')))}",
                *common, *options, expect=expect)


def build_consumer(project, *options, build=None):
    build = build or os.path.join(SCRATCH, project)
    configure(os.path.join(HERE, project), build, f"-Dzerosched_ROOT={PREFIX}", *options)
    call("cmake", "--build", build, "--parallel", "2")
    return build


def run_trainer(folder, ranks, standard, backend):
    command = [os.path.join(folder, "trainer")]
    result = job.run([*job.mpirun(ranks), *command] if ranks > 1 else command)
    expected = f"ranks {ranks} standard {standard} backend {backend} "
    check(result.code == 0 and result.out.startswith(expected),
          f"expected exit code 0 and '{expected}', got {result.code}\n{result.out}\n{result.err}")


def install():
    shutil.rmtree(PREFIX, ignore_errors=True)
    call("cmake", "--install", BUILD, "--prefix", PREFIX)
    installed = {os.path.relpath(os.path.join(folder, name), PREFIX)
                 for folder, _, names in os.walk(PREFIX) for name in names}
    headers = {f"include/zerosched/{name}" for name in os.listdir(os.path.join(SOURCE, "include/zerosched"))}
    if not HAS_MPI:
        headers.remove("include/zerosched/mpi_communicator.h")
    found = {name for name in installed if name.startswith("include/")}
    check(found == headers, f"installed headers: {found}, expected: {headers}")
    check(not [name for name in installed if "test" in name], f"tests were installed: {installed}")
    library = symbols.library(PREFIX)
    version = re.search(r"project\(zerosched VERSION (\d+)\.(\d+)\.(\d+)",
                        open(os.path.join(SOURCE, "CMakeLists.txt"), encoding="utf-8").read())
    check(os.path.basename(os.path.realpath(library)) == "libzerosched.so." + ".".join(version.groups()),
          f"{library} is {os.path.realpath(library)}")
    soname = re.search(r"SONAME.*\[(.*)\]", call("readelf", "-d", library)).group(1)
    check(soname == "libzerosched.so.{}.{}".format(*version.groups()), f"the SONAME is {soname}")
    check(os.path.exists(os.path.join(os.path.dirname(library), soname)), f"there is no {soname}")
    if HAS_MPI:
        needed = call("ldd", os.path.join(PREFIX, "bin", "zerosched_doctor"))
        check(os.path.realpath(library) in {os.path.realpath(path) for path in re.findall(r"=> (\S+)", needed)},
              f"the installed doctor does not use the installed library:\n{needed}")


def components():
    project = os.path.join(HERE, "installed")

    def ask(components, expect):
        return configure(project, os.path.join(SCRATCH, "components"), f"-Dzerosched_ROOT={PREFIX}",
                         f"-DCONSUMER_COMPONENTS={components}", expect=expect)

    with open(os.path.join(BUILD, "zeroschedConfig.cmake"), encoding="utf-8") as config:
        built = re.search(r'set\(zerosched_COMPONENTS "(.*)"\)', config.read()).group(1).split(";")
    check(("mpi" in built) == HAS_MPI, f"built: {built}")
    check(("nccl" in built) == (cached("ZEROSCHED_NCCL_ENABLED") == "ON"), f"built: {built}")
    for component in ("mpi", "cuda", "nccl"):
        output = ask(component, expect=0 if component in built else 1)
        option = "-DZEROSCHED_MPI=ON" if component == "mpi" else "-DZEROSCHED_CUDA=ON"
        check(component in built or option in output, f"the error does not name {option}:\n{output}")
    check("there are mpi, cuda and nccl" in ask("tpu", expect=1), "an unknown component has no clear error")
    ask(";OPTIONAL_COMPONENTS;tpu", expect=0)


def libtorch():
    """An installed zerosched that says it was built with another LibTorch than the one that is here."""
    other = os.path.join(SCRATCH, "other_libtorch")
    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(PREFIX, other, symlinks=True)
    config = os.path.join(os.path.dirname(symbols.library(other)), "cmake", "zerosched", "zeroschedConfig.cmake")
    with open(config, encoding="utf-8") as file:
        text = file.read()
    changed = re.sub(r'set\(_built_with "[0-9.]+"\)', 'set(_built_with "2.6.0")', text)
    check(changed != text, "the config does not say which LibTorch zerosched was built with")
    with open(config, "w", encoding="utf-8") as file:
        file.write(changed)
    output = configure(os.path.join(HERE, "installed"), os.path.join(SCRATCH, "libtorch"), f"-Dzerosched_ROOT={other}", expect=1)
    output = " ".join(output.split())
    check("was built with LibTorch 2.6.0" in output and "CMAKE_PREFIX_PATH" in output, f"no clear error:\n{output}")


def exported_symbols():
    symbols.self_test()
    foreign = symbols.foreign(symbols.exported(symbols.library(PREFIX)))
    check(not foreign, "libzerosched exports symbols that are not its own:\n" + "\n".join(foreign))


def installed():
    folder = build_consumer("installed")
    for ranks in (1, 2) if HAS_MPI else (1,):
        run_trainer(folder, ranks, 201703, "mpi" if ranks > 1 else "self")


def quickstart():
    """As a reader of README builds it."""
    build = os.path.join(SCRATCH, "quickstart")
    configure(os.path.join(SOURCE, "examples", "quickstart"), build, f"-Dzerosched_ROOT={PREFIX}")
    call("cmake", "--build", build)
    result = job.run([os.path.join(build, "quickstart")], cwd=build)
    check(result.code == 0 and result.out.startswith("accuracy"), f"got {result.code}\n{result.out}\n{result.err}")


def headers():
    run_trainer(build_consumer("headers"), 1, 202002, "self")


@contextlib.contextmanager
def built_in_tree(case, *options):
    """The build folder of a project that zerosched is a part of. Beside that of zerosched's own build: so the compiler
    finds everything under the same relative paths, and the cache knows that the objects are the same."""
    build = f"{BUILD}-{case}"
    yield build_consumer("subdirectory", f"-DZEROSCHED_SOURCE_DIR={SOURCE}", "-DZEROSCHED_WERROR=ON", *options, build=build)
    shutil.rmtree(build)


def subdirectory():
    with built_in_tree("subdirectory") as folder:
        run_trainer(folder, 1, 201703, "self")


def alone():
    """A static library with everything left out that can be left out."""
    def optional(path):
        return set(re.findall(r"NEEDED.*\[(libzerosched|libmpi|libcudart)\.so", call("readelf", "-d", path)))

    with built_in_tree("alone", "-DZEROSCHED_MPI=OFF", "-DZEROSCHED_CUDA=OFF", "-DBUILD_SHARED_LIBS=OFF") as folder:
        run_trainer(folder, 1, 201703, "self")
        needed = optional(os.path.join(folder, "trainer"))
        check(not needed, f"the trainer needs {needed}")
    needed = optional(symbols.library(PREFIX))
    check(("libmpi" in needed) == HAS_MPI, f"the installed library needs {needed}")


CASES = {"install": install, "components": components, "symbols": exported_symbols, "installed": installed, "quickstart": quickstart,
         "headers": headers, "subdirectory": subdirectory, "alone": alone, "libtorch": libtorch}

if __name__ == "__main__":
    CASES[sys.argv[1]]()
