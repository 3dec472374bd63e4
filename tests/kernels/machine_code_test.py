"""What the GPU's compiler made of the kernels, read back from the very objects that the library is linked of.

usage: machine_code_test.py NVCC ARCHITECTURES OBJECT...      exit code 77 if there is no disassembler
ARCHITECTURES: as CMake has them, separated by commas: 80-real,90-real,100

Held for every kernel and architecture, but for norms of other orders than 1, 2 and infinity: no spills, every access
of the hot loop 128 bits wide (but loads of what becomes wider in a bucket), the bytes of an element exactly those of the algorithm, and instructions that the GPU
issues in less than half the time that its memory takes for those bytes. That shows that issue is no limit; what
bandwidth is achieved takes a GPU to see.
"""

import glob
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

from machine_code import read_kernels, run

# H100 SXM: bytes and cycles per second, and threads' instructions that a multiprocessor issues in a cycle.
BANDWIDTH, CLOCK, MULTIPROCESSORS, ISSUE = 3.35e12, 1.7e9, 132, 128
ISSUE_TO_MEMORY_BAR = 0.5

SIZES = {"float": 4, "double": 8, "BFloat16": 2, "Float16": 2}


def state_tensors():
    """How many each rule has, by the letters of its class's name, from the list of rules."""
    with open(os.path.join(os.environ["ZEROSCHED_SOURCE_DIR"], "src/kernels/step_scalars.h"), encoding="utf-8") as file:
        found = re.findall(r'case Rule::(\w+):\s+return "(\w+)";', file.read())
    return {rule.replace("_", "") + "rule": len(state) for rule, state in found}


STATE_TENSORS = state_tensors()

NVCC = None
ARCHITECTURES = []
OBJECTS = []


def find_cuobjdump():
    """Of the Python packages, or of the toolkit; with nvdisasm beside it."""
    spec = importlib.util.find_spec("nvidia")
    folders = [folder for root in (spec.submodule_search_locations if spec else [])
               for folder in sorted(glob.glob(os.path.join(root, "*", "bin")))]
    on_path = shutil.which("cuobjdump")
    folders += [os.path.dirname(on_path)] if on_path else []
    folders += [os.path.dirname(NVCC)]
    for folder in folders:
        tools = [os.path.join(folder, tool) for tool in ("cuobjdump", "nvdisasm")]
        if all(os.access(tool, os.X_OK) for tool in tools):
            os.environ["PATH"] = folder + os.pathsep + os.environ["PATH"]
            return tools[0]
    return None


def bytes_of_update(rule, param, grad, real):
    """Per element: the gradient read, each state tensor read and written, the parameter written."""
    return SIZES[grad] + 2 * STATE_TENSORS[rule.lower()] * SIZES[real] + SIZES[param]


def issue_to_memory(instructions_per_element, bytes_per_element):
    return instructions_per_element * BANDWIDTH / (ISSUE * MULTIPROCESSORS * CLOCK * bytes_per_element)


def spill_complaints(kernel):
    found = []
    if kernel.resources.get("LOCAL", -1) != 0 or kernel.resources.get("STACK", -1) != 0:
        found.append(f"spills: {kernel.resources}")
    if any(i.name.startswith(("LDL", "STL")) for i in kernel.instructions):
        found.append("accesses to local memory")
    return found


def loop_complaints(loop, elements, bytes_per_element, load_bytes=16):
    """`elements`: of one iteration. `load_bytes`: of each load."""
    found = []
    accesses = [i for i in loop if i.is_global_access]
    narrow = sorted({i.name for i in accesses if i.bytes != (load_bytes if i.name.startswith("LDG") else 16)})
    if narrow:
        found.append(f"accesses in the hot loop that are not 128 bits wide: {', '.join(narrow)}")
    moved = sum(i.bytes for i in accesses)
    if moved != elements * bytes_per_element:
        found.append(f"{moved / elements} bytes per element instead of {bytes_per_element}")
    ratio = issue_to_memory(len(loop) / elements, bytes_per_element)
    if ratio >= ISSUE_TO_MEMORY_BAR:
        found.append(f"{len(loop) / elements} instructions per element: issue takes {ratio:.2f} of the memory's time")
    return found


def complaints(kernel, elements, bytes_per_element):
    """Why a kernel is not as it should be; an empty list if it is. `elements`: of one iteration of the hot loop."""
    loop = kernel.hot_loop()
    return spill_complaints(kernel) + (
        ["no loop with 128-bit accesses"] if loop is None else loop_complaints(loop, elements, bytes_per_element))


def plain_names(kernels):
    names = run(["c++filt"] + [kernel.name for kernel in kernels]).splitlines()
    return [name.replace("zerosched::kernels::", "").replace("cuda::", "") for name in names]


class Kernels(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.kernels = {}
        for architecture in ARCHITECTURES:
            kernels = [kernel for path in OBJECTS for kernel in read_kernels(CUOBJDUMP, path, architecture)]
            cls.kernels[architecture] = list(zip(plain_names(kernels), kernels))

    def check(self, pattern, count, shape):
        """shape(match): elements of one iteration and bytes per element."""
        for architecture, kernels in self.kernels.items():
            seen = 0
            worst = (0, 0, "")
            for name, kernel in kernels:
                match = re.search(pattern, name)
                if not match:
                    continue
                seen += 1
                elements, size = shape(match, kernel)
                with self.subTest(architecture=architecture, kernel=name):
                    self.assertEqual(complaints(kernel, elements, size), [])
                    per_element = len(kernel.hot_loop()) / elements
                    worst = max(worst, (issue_to_memory(per_element, size), per_element, match.group(0)))
            self.assertEqual(seen, count, f"kernels of {architecture} that match {pattern}")
            print(f"{architecture}: {count} kernels like {worst[2]}, at most {worst[1]:.0f} instructions per element "
                  f"there, R = {worst[0]:.2f}")

    def test_update(self):
        def shape(match, _):
            _, param, grad, _ = match.groups()
            return 16 // min(SIZES[param], SIZES[grad]), bytes_of_update(*match.groups())

        # g, z, x, v read, z, x, v, y written.
        self.assertEqual(bytes_of_update("AdamWScheduleFreeRule", "float", "float", "float"), 32)
        self.assertEqual(bytes_of_update("AdamWScheduleFreeRule", "BFloat16", "BFloat16", "float"), 28)
        # 9 rules; each dtype with its own gradients, the 16-bit types also with float32's, float32 with bfloat16's.
        self.check(r"update_kernel<(\w+)(?:<[^>]*>)?, (\w+), (\w+), (\w+)>", 63, shape)

    def test_interpolate(self):
        def shape(match, _):
            param, real = match.groups()
            return 16 // SIZES[param], 2 * SIZES[real] + SIZES[param]

        self.check(r"interpolate_kernel<(\w+), (\w+)>", 4, shape)

    def test_sum_of_powers(self):
        def shape(match, kernel):
            size = SIZES[match.group(1)]
            loads = sum(1 for i in kernel.hot_loop() or [] if i.is_global_access)
            return max(1, loads) * 16 // size, size

        # Any other power is a call of pow, whose instructions outweigh the memory.
        self.check(r"sum_tiles_kernel<(\w+), (?:Squares|Magnitudes|Largest)>", 12, shape)

    def test_inner_product(self):
        def shape(match, kernel):
            grad, real = (SIZES[name] for name in match.groups())
            size = grad + 2 * real
            loads = sum(1 for i in kernel.hot_loop() or [] if i.is_global_access)
            return max(1, loads) * 16 // size, size

        self.check(r"inner_product_of_tiles_kernel<(\w+), (\w+)>", 4, shape)

    def test_clamp_gradient(self):
        def shape(match, _):
            size = SIZES[match.group(1)]
            return 16 // size, 2 * size

        self.check(r"clamp_kernel<(\w+)>", 4, shape)

    def test_pack(self):
        sources = {"float": ["float", "BFloat16", "Float16"], "double": ["double"], "BFloat16": ["float", "BFloat16"],
                   "Float16": ["float", "Float16"]}
        for architecture, kernels in self.kernels.items():
            packs = [(re.search(r"pack_kernel<(\w+), (\w+)", name), kernel) for name, kernel in kernels]
            packs = [(match, kernel) for match, kernel in packs if match]
            # Two of each dtype and capacity: with weight 1 and with any other.
            self.assertEqual(len(packs), 16)
            for match, kernel in packs:
                size = SIZES[match.group(1)]
                # Bytes of an iteration, read and written: two loops that zero, and one for each dtype of a gradient.
                shapes = [(0, 16)] * 2 + [(16 * SIZES[source] // size, 16) for source in sources[match.group(1)]]
                with self.subTest(architecture=architecture, kernel=match.group(0)):
                    self.assertEqual(spill_complaints(kernel), [])
                    found = []
                    for loop in kernel.wide_loops():
                        read, written = (sum(i.bytes for i in loop if i.name.startswith(name)) for name in ("LDG", "STG"))
                        found.append((read, written))
                        elements = written // size
                        self.assertEqual(
                            loop_complaints(loop, elements, (read + written) / elements, load_bytes=min(read or 16, 16)), [])
                    self.assertEqual(sorted(found), sorted(shapes))
            print(f"{architecture}: {len(packs)} kernels that pack")


class NegativeControls(unittest.TestCase):
    """The checks must reject kernels that are wrong in one way each."""

    @classmethod
    def setUpClass(cls):
        cls.source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "machine_code_controls.cu")
        with tempfile.TemporaryDirectory() as folder:
            cubin = os.path.join(folder, "controls.cubin")
            run([NVCC, "-O3", "-arch=sm_90", "-cubin", "-o", cubin, cls.source])
            kernels = read_kernels(CUOBJDUMP, cubin, "sm_90")
            cls.found = {name.split("(")[0]: complaints(kernel, 4, 12)
                         for name, kernel in zip(plain_names(kernels), kernels)}

    def expect(self, kernel, part):
        self.assertEqual(len(self.found[kernel]), 1, self.found[kernel])
        self.assertIn(part, self.found[kernel][0])

    def test_a_good_kernel_passes(self):
        self.assertEqual(self.found["good"], [])

    def test_narrow_accesses(self):
        self.assertIn("not 128 bits wide: LDG.E", " ".join(self.found["narrow"]))

    def test_extra_bytes(self):
        self.expect("extra_bytes", "16.0 bytes per element instead of 12")

    def test_too_many_instructions(self):
        self.expect("slow", "instructions per element: issue takes")

    def test_spills(self):
        self.assertIn("spills", " ".join(self.found["spills"]))
        self.assertIn("local memory", " ".join(self.found["spills"]))

    def test_spills_do_not_compile_with_the_librarys_flags(self):
        done = subprocess.run(
            [NVCC, "-O3", "-arch=sm_90", "-cubin", "-o", os.devnull, "-Xptxas=-warn-spills,-Werror", self.source],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
        self.assertNotEqual(done.returncode, 0)
        self.assertRegex(done.stdout, "error.*Registers are spilled to local memory in function '.*spills")


if __name__ == "__main__":
    NVCC = sys.argv[1]
    ARCHITECTURES = ["sm_" + architecture.removesuffix("-real") for architecture in sys.argv[2].split(",")
                     if not architecture.endswith("-virtual")]
    OBJECTS = [path for path in sys.argv[3:] if path.endswith(".cu.o")]
    CUOBJDUMP = find_cuobjdump()
    if CUOBJDUMP is None:
        print("SKIPPED: no cuobjdump with nvdisasm beside it; launch/setup installs both for its Python")
        sys.exit(77)
    unittest.main(argv=sys.argv[:1], verbosity=2)
