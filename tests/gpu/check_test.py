"""Every step of the check, with programs that stand in for those of a GPU; what it finds out of a machine; and that tests
that need a GPU never share it."""
import json
import os
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import job  # noqa: E402
import machine  # noqa: E402
from bundle import Bundle  # noqa: E402
from runner_test import Scratch  # noqa: E402
from steps import Checks  # noqa: E402


def write_program(path, script):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="ascii") as file:
        file.write(f"#!{sys.executable}\nimport json, os, sys\narguments = sys.argv[1:]\n{script}")
    os.chmod(path, 0o755)


TESTS = "print('[  PASSED  ] 3 tests.')\n"


def writing(figures):
    """A program that writes figures where --json says."""
    return f"if '--json' in arguments:\n    json.dump({figures!r}, open(arguments[arguments.index('--json') + 1], 'w'))\n"


TIMES = {f"{part}_seconds": 0.1 for part in ("step", "forward", "backward", "update", "host")}
# The loss falls by as much a step on whatever device.
CHAR_GPT = """
def value(name):
    return arguments[arguments.index(name) + 1]
if "--metrics" in arguments:
    with open(value("--metrics"), "w") as file:
        for step in range(int(value("--steps"))):
            print(json.dumps({"loss": 5 * 0.99 ** step + SHIFT * (value("--device") == "cuda")}), file=file)
elif "--help" in arguments:
    print("algorithm: AdamW,SGD")
elif "--export" in arguments:
    with open(value("--export"), "w") as file:
        file.write("weights")
else:
    print(json.dumps({"world_size": int(os.environ["RANKS"])}))
"""
PROGRAMS = {
    "cuda_gpu_test": TESTS, "engine_gpu_test": TESTS, "comm_gpu_conformance_test": TESTS,
    "bench_pack_gpu": writing([{"case": "x", "of_one_copy": 0.9}]),
    "bench_update_gpu": writing([{"case": "x", "of_one_copy": 0.9}]),
    "bench_step_gpu": writing({"host": {"hook_seconds": 1e-6}, "memory": [{"bytes": 1}], "step": TIMES}),
    "bench_timeline": writing([TIMES]), "char_gpt": CHAR_GPT.replace("SHIFT", "0"),
}
MPIRUN = """
ranks = arguments.index("-n")
os.environ["RANKS"] = arguments[ranks + 1]
os.execv(arguments[ranks + 2], arguments[ranks + 2:])
"""
SANITIZER = """
assert arguments[0] == "--tool"
program = next(i for i, word in enumerate(arguments) if "/bin/" in word)
os.execv(arguments[program], arguments[program:])
"""


class EveryStep(Scratch):
    """In a folder of programs that stand in for the packed ones."""

    def setUp(self):
        super().setUp()
        for name, script in PROGRAMS.items():
            self.put(name, script)
        write_program(os.path.join(self.folder, "openmpi", "bin", "mpirun"), MPIRUN)
        write_program(os.path.join(self.folder, "tools", "compute-sanitizer"), SANITIZER)
        write_program(os.path.join(self.folder, "tools", "ldd"), "print('libz.so.1 => /lib/libz.so.1')\n")
        write_program(os.path.join(self.folder, "runner", "other_optimizers.py"), "print('SKIPPED: no torch')\nsys.exit(77)\n")
        with open(os.path.join(self.folder, "manifest.json"), "w", encoding="ascii") as file:
            json.dump({"glibc": "2.3"}, file)
        before = os.environ["PATH"]
        os.environ["PATH"] = f"{self.folder}/tools:{before}"
        self.addCleanup(os.environ.__setitem__, "PATH", before)

    def put(self, name, script):
        write_program(os.path.join(self.folder, "bin", name), script)

    def checked(self, *only):
        torch = machine.LibTorch(self.folder, "2.11.0", "13.0")
        steps = Checks(Bundle(self.folder), torch, self.folder).steps()
        return self.run_all(*(step for step in steps if step.name in only or not only))

    def test_all_of_them(self):
        results = self.checked()
        expected = {name: "passed" for name in results}
        expected.update(torch="skipped", overlap="skipped")
        self.assertEqual({name: result["status"] for name, result in results.items()}, expected, results)
        self.assertEqual(results["kernels"]["figures"], {"tests": 3})
        self.assertEqual(results["update"]["figures"], [{"case": "x", "of_one_copy": 0.9}])
        self.assertEqual(results["host"]["figures"], {"hook_seconds": 1e-6})
        self.assertEqual(results["timeline"]["figures"]["update_seconds"], {"predicted": 0.1, "measured": 0.1})
        self.assertEqual(results["char_gpt"]["figures"]["relative_difference"], 0)
        self.assertIn("GPU", results["overlap"]["reason"])
        self.assertEqual(sorted(name for name in os.listdir(self.folder) if name.endswith(".json")),
                         ["manifest.json", "results.json"])

    def test_figures_of_a_program_that_fails_are_kept(self):
        self.put("bench_update_gpu", PROGRAMS["bench_update_gpu"] + "print('FAILED: below its floor')\nsys.exit(1)\n")
        result = self.checked("update")["update"]
        self.assertEqual((result["status"], result["reason"]), ("failed", "bench_update_gpu exited with 1"))
        self.assertIn('"of_one_copy": 0.9', result["output_tail"])

    def test_programs_that_run_no_test_and_some_tests(self):
        self.put("cuda_gpu_test", "print('[  PASSED  ] 0 tests.')\n")
        self.assertEqual(self.checked("kernels")["kernels"]["reason"], "cuda_gpu_test ran no test")
        skipped = "print('[  PASSED  ] %d tests.\\nSKIPPED: no moon')\nsys.exit(77)\n"
        self.put("cuda_gpu_test", skipped % 0)
        result = self.checked("kernels")["kernels"]
        self.assertEqual((result["status"], result["reason"]), ("skipped", "no moon"))
        self.put("cuda_gpu_test", skipped % 2)
        result = self.checked("kernels")["kernels"]
        self.assertEqual((result["status"], result["figures"]), ("passed", {"tests": 2, "skipped": "no moon"}))

    def test_other_losses_than_on_the_cpu(self):
        self.put("char_gpt", CHAR_GPT.replace("SHIFT", "0.1"))
        self.assertIn("the losses of the first steps are", self.checked("char_gpt")["char_gpt"]["reason"])
        self.put("char_gpt", CHAR_GPT.replace("SHIFT", "0").replace("0.99", "1.0"))
        self.assertIn("after 200 steps", self.checked("char_gpt")["char_gpt"]["reason"])

    def test_a_library_that_is_missing(self):
        write_program(os.path.join(self.folder, "tools", "ldd"), "print('libz.so.1 => not found')\n")
        self.assertEqual(self.checked("programs")["programs"]["reason"], "bench_pack_gpu: libz.so.1 => not found")

    def test_what_was_not_packed_and_what_was_not_measured(self):
        os.remove(os.path.join(self.folder, "bin", "bench_timeline"))
        results = self.checked("step", "timeline")
        self.assertEqual(results["timeline"]["reason"], "bench_timeline was not packed")
        self.assertIn("nothing to compare with", self.checked("timeline")["timeline"]["reason"])

    def test_without_a_sanitizer(self):
        os.remove(os.path.join(self.folder, "tools", "compute-sanitizer"))
        if machine.find_sanitizer():
            self.skipTest("there is one on this machine")
        self.assertEqual(self.checked("memcheck")["memcheck"]["status"], "skipped")

    def test_a_sanitizer_that_finds_something_and_one_that_does_not_like_the_gpu(self):
        tool = os.path.join(self.folder, "tools", "compute-sanitizer")
        write_program(tool, "print('Invalid __global__ read')\nsys.exit(9)\n")
        self.assertEqual(self.checked("memcheck")["memcheck"]["reason"], "compute-sanitizer exited with 9")
        write_program(tool, "print('Device not supported. Please refer to the documentation')\nsys.exit(1)\n")
        self.assertEqual(self.checked("racecheck")["racecheck"]["status"], "skipped")

    def test_glibc(self):
        bundle = Bundle(self.folder)
        self.assertEqual(bundle.why_too_old(), "")
        bundle.manifest["glibc"] = "3.100"
        self.assertIn("the programs need 3.100", bundle.why_too_old())


class Machine(unittest.TestCase):
    def test_torch_that_does_not_fit(self):
        built = {"version": "2.11.0+cu130", "cuda": "13"}

        def why(*torch):
            return machine.why_torch_does_not_fit(machine.LibTorch("/x", *torch), built)

        self.assertEqual(why("2.11.1", "13.0"), "")
        self.assertIn("2.7.0", why("2.7.0", "13.0"))
        self.assertIn("CUDA 12", why("2.11.0", "12.8"))
        self.assertIn("CUDA none", why("2.11.0+cpu", ""))
        self.assertIn("no LibTorch", machine.why_torch_does_not_fit(None, built))

    def test_torch_of_a_folder(self):
        with tempfile.TemporaryDirectory() as folder:
            self.assertIsNone(machine.find_torch(folder))
            os.makedirs(os.path.join(folder, "torch", "lib"))
            os.makedirs(os.path.join(folder, "nvidia", "cu13", "lib"))
            with open(os.path.join(folder, "torch", "lib", "libtorch_cpu.so"), "w", encoding="ascii"):
                pass
            with open(os.path.join(folder, "torch", "version.py"), "w", encoding="ascii") as file:
                file.write("__version__ = '2.11.0+cu130'\ncuda: Optional[str] = '13.0'\n")
            torch = machine.find_torch(os.path.join(folder, "torch"))
            self.assertEqual(torch[1:], ("2.11.0+cu130", "13.0"))
            self.assertEqual([os.path.realpath(path) for path in machine.library_folders(torch)],
                             [os.path.realpath(os.path.join(folder, *names))
                              for names in (("torch", "lib"), ("nvidia", "cu13", "lib"))])

    def test_clocks(self):
        with tempfile.TemporaryDirectory() as folder:
            write_program(os.path.join(folder, "nvidia-smi"),
                          "print('345, 70.1, [N/A]\\n1980, 650.5, [N/A]\\n1980', flush=True)\nimport time\ntime.sleep(100)\n")
            before = os.environ["PATH"]
            os.environ["PATH"] = f"{folder}:{before}"
            try:
                clocks = machine.Clocks()
                clocks.begin()
                deadline = time.monotonic() + 10
                while len(clocks.samples) < 3 and time.monotonic() < deadline:
                    time.sleep(0.01)
                self.assertEqual(clocks.end(), {"clocks.sm": [345, 1980, 1980], "power.draw": [70.1, 650.5, 650.5]})
                self.assertEqual(clocks.end(), {})
            finally:
                os.environ["PATH"] = before


class Tests(unittest.TestCase):
    def test_steps_have_names_of_their_own_and_limits(self):
        names = [step.name for step in Checks().steps()]
        self.assertEqual(len(names), len(set(names)))
        self.assertTrue(all(0 < step.limit <= 120 for step in Checks().steps()))

    def test_tests_that_need_a_gpu_do_not_share_it(self):
        shown = subprocess.run(["ctest", "--show-only=json-v1"], cwd=os.environ["ZEROSCHED_BUILD_DIR"], capture_output=True,
                               text=True, check=True)
        on_gpu = {}
        for test in json.loads(shown.stdout)["tests"]:
            properties = {item["name"]: item["value"] for item in test.get("properties", [])}
            if "gpu" in properties.get("LABELS", []):
                on_gpu[test["name"]] = properties
        if not on_gpu:
            self.skipTest("built without CUDA")
        for name, properties in on_gpu.items():
            self.assertEqual(properties.get("RESOURCE_LOCK"), ["gpu"], name)
            self.assertEqual(properties.get("SKIP_RETURN_CODE"), job.SKIPPED, name)
            if name.startswith("bench_"):
                self.assertTrue(properties.get("RUN_SERIAL"), name)
        self.assertIn("bench_update_gpu", on_gpu)
        self.assertIn("cuda_gpu_test.MoreThan2To31Elements", on_gpu)


if __name__ == "__main__":
    job.main()
