"""What a machine has that the programs need: a GPU, its driver, LibTorch. Finds it out without loading LibTorch."""
import collections
import ctypes
import glob
import importlib.util
import os
import re
import shutil
import subprocess
import threading

LibTorch = collections.namedtuple("LibTorch", "folder version cuda")


def find_torch(folder=None):
    """The LibTorch in a folder, or the one of this Python; None if there is none."""
    if folder is None:
        spec = importlib.util.find_spec("torch")
        if spec is None or not spec.submodule_search_locations:
            return None
        folder = spec.submodule_search_locations[0]
    if not os.path.exists(os.path.join(folder, "lib", "libtorch_cpu.so")):
        return None
    version = cuda = ""
    try:
        with open(os.path.join(folder, "version.py"), encoding="utf-8") as file:  # of a wheel
            text = file.read()
        version = re.search(r"__version__ = '([^']*)'", text).group(1)
        found = re.search(r"^cuda[^=]*= '([^']*)'", text, re.MULTILINE)
        cuda = found.group(1) if found else ""
    except OSError:
        for name in glob.glob(os.path.join(folder, "build-version")):  # of an archive
            with open(name, encoding="utf-8") as file:
                version = file.read().strip()
        cuda = "".join(re.findall(r"libcudart[^/]*\.so\.(\d+)", " ".join(glob.glob(os.path.join(folder, "lib", "*"))))[:1])
    return LibTorch(os.path.abspath(folder), version, cuda)


def library_folders(torch):
    """Where LibTorch's libraries and those of CUDA that it loads are; a wheel's lie beside it."""
    return [os.path.join(torch.folder, "lib"), *sorted(glob.glob(os.path.join(torch.folder, "..", "nvidia", "*", "lib")))]


def why_torch_does_not_fit(torch, built_with):
    """'' if the programs, built with a version such as 2.11.0 for CUDA 13, can be loaded with it."""
    if torch is None:
        return "no LibTorch: python3 has no torch; name its folder with --torch"
    minor = lambda version: version.split("+")[0].split(".")[:2]
    if torch.version and minor(torch.version) != minor(built_with["version"]):
        return f"LibTorch {torch.version} is here, the programs were built with {built_with['version']}"
    if torch.cuda.split(".")[0] != built_with["cuda"]:
        return f"this LibTorch is for CUDA {torch.cuda or 'none'}, the programs were built for {built_with['cuda']}"
    return ""


def why_no_gpu():
    """As the driver says it; '' if there is one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no GPU: there is no driver (libcuda.so.1)"
    if driver.cuInit(0) != 0:
        return "no GPU: the driver finds none (cuInit)"
    count = ctypes.c_int(0)
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "no GPU: the driver counts none; look at CUDA_VISIBLE_DEVICES"
    return ""


def gpu_facts():
    """What nvidia-smi says of each GPU."""
    fields = ["name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem",
              "power.limit", "temperature.gpu"]
    try:
        listed = subprocess.run(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
                                capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [dict(zip(fields, (value.strip() for value in line.split(",")))) for line in listed.splitlines()]


def find_sanitizer():
    """compute-sanitizer's path, or None."""
    places = ["/usr/local/cuda*/bin/compute-sanitizer", "/usr/local/cuda*/compute-sanitizer/compute-sanitizer",
              "/opt/nvidia/*/compute-sanitizer"]
    return shutil.which("compute-sanitizer") or next(iter(sorted(sum((glob.glob(p) for p in places), []))), None)


class Clocks:
    """The GPU's clocks while a step runs: nvidia-smi twice a second."""

    FIELDS = ("clocks.sm", "power.draw", "temperature.gpu")

    def __init__(self):
        self.process = None
        self.samples = []

    def begin(self):
        self.samples = []
        try:
            self.process = subprocess.Popen(
                ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(self.FIELDS)}", "--format=csv,noheader,nounits",
                 "-lms", "500"],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError:
            return
        threading.Thread(target=self._read, args=(self.process, self.samples), daemon=True).start()

    @staticmethod
    def _read(process, samples):
        with process.stdout as lines:
            for line in lines:
                samples.append(line.strip().split(", "))

    def end(self):
        """Least, median and most of each field; {} if nothing is known."""
        if self.process is None:
            return {}
        self.process.kill()
        self.process.wait()
        self.process = None
        found = {}
        for i, field in enumerate(self.FIELDS):
            values = []
            for sample in list(self.samples):
                try:
                    values.append(float(sample[i]))
                except (IndexError, ValueError):
                    pass  # "[N/A]", or a line that was cut
            if values:
                values.sort()
                found[field] = [values[0], values[len(values) // 2], values[-1]]
        return found
