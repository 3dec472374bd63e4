"""Puts what a build has, and what it loads, into a folder that can be carried to a machine with a GPU.
usage: pack.py BUILD_FOLDER OUT_FOLDER

From the build by its own installation, component gpu_bundle. LibTorch, CUDA, the C and the C++ library are left to the
machine; Open MPI, and every other library that something in the folder loads, is copied."""
import glob
import json
import os
import re
import shutil
import subprocess
import sys

import machine

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
MOST_BYTES = 60 << 20
TEXT_BYTES = 1 << 20
MADE_BY = "tests/gpu/pack"
RUNNER = [os.path.join(HERE, name) for name in ("bundle.py", "machine.py", "runner.py", "steps.py", "other_optimizers.py")]
RUNNER.append(os.path.join(ROOT, "tests", "support", "processes.py"))
# The machine's own: the C and the C++ library, the driver.
OF_THE_MACHINE = re.compile(r"(ld-linux.*|linux-vdso|lib(c|m|dl|rt|pthread|util|resolv|stdc\+\+|gcc_s|cuda|nvidia-ml))\.so.*")
# Of the networks of clusters, and of OpenSHMEM: one machine needs none of them.
PLUGINS_LEFT_OUT = re.compile(r"lib(fabric|ucp|ibverbs|psm|psm2|psm_infinipath|oshmem|nl-3)\.so")


def fail(why):
    sys.exit(f"pack: {why}")


def output_of(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def cache_of(build):
    """CMakeCache.txt as a dict."""
    with open(os.path.join(build, "CMakeCache.txt"), encoding="utf-8") as file:
        return dict(re.findall(r"^([\w-]+):\w+=(.*)$", file.read(), re.MULTILINE))


def copy(path, *to):
    target = os.path.join(*to)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.copyfile(path, target)  # a file, whatever links lead to it
    shutil.copymode(path, target)


def needed_by(path, environment):
    """Name -> path of all that a program or library loads, however indirectly."""
    listed = subprocess.run(["ldd", path], env=environment, capture_output=True, text=True).stdout
    if missing := re.findall(r"(\S+) => not found", listed):
        fail(f"{path} needs {', '.join(missing)}, which is not there")
    return dict(re.findall(r"(\S+) => (/\S+)", listed))


def is_elf(path):
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def most_of(symbol, paths):
    """The newest version of a library's symbols, as GLIBC_2.34, that something needs."""
    versions = {tuple(map(int, version.split(".")))
                for path in paths for version in re.findall(rf"\b{symbol}_([\d.]+)\b", output_of("objdump", "-T", path))}
    return ".".join(map(str, max(versions)))


def is_packed(folder):
    try:
        with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
            return json.load(file).get("made_by") == MADE_BY
    except (OSError, ValueError):
        return False


class Packing:
    def __init__(self, build, out):
        self.build, self.out = build, out
        self.cache = cache_of(build)
        self.torch = machine.find_torch(os.path.dirname(os.path.dirname(self.cache["LibTorch_CPU_LIBRARY"])))
        # Finds what has no path of its own any more.
        self.environment = dict(os.environ, LD_LIBRARY_PATH=":".join(
            [os.path.join(out, "lib"), *machine.library_folders(self.torch)]))

    def is_left_out(self, name, path):
        with_torch = [os.path.dirname(self.torch.folder), os.path.dirname(self.cache.get("LibTorch_CUDART_LIBRARY", "/none/x"))]
        return OF_THE_MACHINE.fullmatch(name) or any(
            os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep) for folder in with_torch)

    def add_libraries_of(self, paths):
        for path in paths:
            for name, library in needed_by(path, self.environment).items():
                if not self.is_left_out(name, library) and not os.path.exists(os.path.join(self.out, "lib", name)):
                    copy(library, self.out, "lib", name)

    def add_build(self):
        subprocess.run(["cmake", "--install", self.build, "--component", "gpu_bundle", "--prefix", self.out, "--strip"],
                       check=True, stdout=subprocess.DEVNULL)
        self.add_libraries_of(glob.glob(os.path.join(self.out, "bin", "*")))

    def add_open_mpi(self):
        """mpirun, its helpers, and the plugins that work on one machine, with the texts of their errors."""
        binaries = os.path.dirname(self.cache["MPIEXEC_EXECUTABLE"])
        listed = output_of(os.path.join(binaries, "ompi_info"), "--path", "all", "--parsable")
        folders = dict(re.findall(r"^path:(\w+):(.*)$", listed, re.MULTILINE))
        for name in ("mpirun", "orted"):
            copy(os.path.realpath(os.path.join(binaries, name)), self.out, "openmpi", "bin", name)
        plugins = [path for path in sorted(glob.glob(os.path.join(folders["pkglibdir"], "mca_*.so")))
                   if not any(PLUGINS_LEFT_OUT.match(name) for name in needed_by(path, self.environment))]
        if not plugins:
            fail(f"Open MPI's plugins are not in {folders['pkglibdir']}")
        for path in plugins:
            copy(path, self.out, "openmpi", "plugins", os.path.basename(path))
        for path in glob.glob(os.path.join(folders["pkgdatadir"], "help-*.txt")):
            copy(path, self.out, "openmpi", "share", os.path.basename(path))
        for name in ("openmpi-mca-params.conf", "openmpi-default-hostfile"):
            path = os.path.join(folders["sysconfdir"], name)
            if os.path.exists(path):
                copy(path, self.out, "openmpi", "etc", name)
        self.add_libraries_of([os.path.join(binaries, "mpirun"), os.path.join(binaries, "orted"), *plugins])
        self.add_pmix([path for path in plugins if "mca_pmix_" in path])

    def add_pmix(self, open_mpi_plugins):
        """What a PMIx of its own, as Debian has, reads beside its library. One inside Open MPI reads nothing."""
        found = {}
        for path in open_mpi_plugins:
            found.update(needed_by(path, dict(os.environ)))
        if "libpmix.so.2" not in found:
            return
        home = os.path.dirname(os.path.dirname(os.path.realpath(found["libpmix.so.2"])))
        plugins = glob.glob(os.path.join(home, "lib", "pmix", "*.so"))
        for path in plugins:
            copy(path, self.out, "pmix", "plugins", os.path.basename(path))
        for path in glob.glob(os.path.join(home, "share", "pmix", "help-*.txt")):
            copy(path, self.out, "pmix", "share", os.path.basename(path))
        self.add_libraries_of(plugins)

    def add_data(self):
        bible = shutil.which("bible") or "/usr/games/bible"
        if not os.path.exists(bible):
            fail("the program bible is missing (Debian: bible-kjv and bible-kjv-text)")
        text = subprocess.run([bible, "-f", "gen1:1-rev22:21"], check=True, capture_output=True).stdout[:TEXT_BYTES]
        if len(text) < TEXT_BYTES:
            fail(f"{bible} printed {len(text)} bytes, not {TEXT_BYTES}")
        os.makedirs(os.path.join(self.out, "data"))
        with open(os.path.join(self.out, "data", "king_james.txt"), "wb") as file:
            file.write(text)

    def add_runner(self):
        copy(os.path.join(HERE, "check"), self.out, "check")
        for path in RUNNER:
            copy(path, self.out, "runner", os.path.basename(path))

    def add_schedulefree(self):
        """Beside torch if the tests' Python has it: some files of Python."""
        package = os.path.join(os.path.dirname(self.torch.folder), "schedulefree")
        for path in glob.glob(os.path.join(package, "*.py")):
            copy(path, self.out, "python", "schedulefree", os.path.basename(path))

    def add_manifest(self):
        elf = [path for path in self.files() if is_elf(path)]
        commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
        manifest = {
            "made_by": MADE_BY, "commit": commit.stdout.strip(),
            "torch": {"version": self.torch.version, "cuda": self.torch.cuda.split(".")[0]},
            "glibc": most_of("GLIBC", elf), "libstdcxx": most_of("GLIBCXX", elf),
            "architectures": self.cache.get("CMAKE_CUDA_ARCHITECTURES", ""),
            "files": {os.path.relpath(path, self.out): os.path.getsize(path) for path in self.files()}}
        with open(os.path.join(self.out, "manifest.json"), "w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1)

    def files(self):
        return sorted(os.path.join(folder, name) for folder, _, names in os.walk(self.out) for name in names)

    def check_size(self, most=MOST_BYTES):
        sizes = sorted(((os.path.getsize(path), os.path.relpath(path, self.out)) for path in self.files()), reverse=True)
        total = sum(size for size, _ in sizes)
        print(f"pack: {total / 1e6:.1f} MB in {len(sizes)} files in {self.out}, the largest:")
        for size, name in sizes[:6]:
            print(f"  {size / 1e6:7.1f} MB  {name}")
        if total > most:
            fail(f"that is more than {most >> 20} MiB")


def main(build, out):
    if os.path.exists(out) and not is_packed(out):
        if not os.path.isdir(out) or os.listdir(out):
            fail(f"{out} is there, and nothing that {MADE_BY} has made; name another with --out")
    shutil.rmtree(out, ignore_errors=True)
    packing = Packing(os.path.abspath(build), os.path.abspath(out))
    packing.add_build()
    packing.add_open_mpi()
    packing.add_data()
    packing.add_runner()
    packing.add_schedulefree()
    packing.add_manifest()
    packing.check_size()


if __name__ == "__main__":
    main(*sys.argv[1:])
