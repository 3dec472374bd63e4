"""The folder for machines with a GPU, packed from this build, moved, and used as such a machine would, but without a GPU:
in an environment that knows nothing of this build or of an Open MPI."""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import job  # noqa: E402
import machine  # noqa: E402
import pack  # noqa: E402
from bundle import Bundle  # noqa: E402
from processes import kill, marked_processes  # noqa: E402

BUILD = os.environ["ZEROSCHED_BUILD_DIR"]
# env -i, but for what finds programs.
BARE = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent", "CUDA_VISIBLE_DEVICES": ""}
CPU_STEPS = {"programs", "ranks"}
GPT = "--device cpu --synthetic --dim 32 --layers 1 --heads 2 --batch 2 --seq 16 --steps 1000000 --progress off"
STEP = "--device cpu --rounds 1 --layers 1 --width 64 --vocabulary 100 --context 16 --batch 2 --memory-width 64"


def mapped_libraries(pid):
    """Paths of the libraries that a process has loaded."""
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        return {line.split(maxsplit=5)[5].strip() for line in maps if ".so" in line}


class MovedBundle(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = tempfile.mkdtemp()
        cls.addClassCleanup(shutil.rmtree, cls.scratch)
        packed, moved = os.path.join(cls.scratch, "packed"), os.path.join(cls.scratch, "elsewhere", "moved")
        subprocess.run([sys.executable, "-B", os.path.join(HERE, "pack.py"), BUILD, packed], check=True)
        os.makedirs(os.path.dirname(moved))
        os.rename(packed, moved)
        cls.bundle = Bundle(moved)
        torch_cpu = pack.cache_of(BUILD)["LibTorch_CPU_LIBRARY"]
        cls.torch = machine.find_torch(os.path.dirname(os.path.dirname(torch_cpu)))

    def check(self, *arguments):
        """Exit code, results and what is printed."""
        out = os.path.join(self.scratch, "out")
        done = subprocess.run([sys.executable, self.bundle.path("check"), "--out", out, *arguments], env=BARE,
                              capture_output=True, text=True, timeout=100)
        results = None
        if os.path.exists(os.path.join(out, "results.json")):
            with open(os.path.join(out, "results.json"), encoding="utf-8") as file:
                results = json.load(file)
            shutil.rmtree(out)
        return done.returncode, results, done.stdout + done.stderr

    def test_without_a_gpu(self):
        code, results, printed = self.check("--torch", self.torch.folder)
        self.assertEqual(code, 0, printed)
        self.assertIn("no GPU", results["no_gpu"])
        for step in results["steps"]:
            with self.subTest(step=step["name"]):
                if step["name"] in CPU_STEPS:
                    self.assertEqual(step["status"], "passed", step)
                else:
                    self.assertEqual((step["status"], step["reason"]), ("skipped", results["no_gpu"]))
                    self.assertRegex(printed, rf"SKIPPED +{step['name']} .*no GPU")
        self.assertGreater(len(results["steps"]), len(CPU_STEPS) + 10)
        ranks = next(step for step in results["steps"] if step["name"] == "ranks")
        self.assertEqual(ranks["figures"]["world_size"], 2)

    def test_without_a_libtorch_that_fits(self):
        code, results, printed = self.check("--torch", self.scratch)
        self.assertEqual(code, 0, printed)
        for step in results["steps"]:
            self.assertEqual(step["status"], "skipped")
            self.assertIn("no LibTorch", step["reason"])

    def test_a_step_that_fails_is_told(self):
        program = self.bundle.path("bin", "char_gpt")
        os.rename(program, program + ".away")
        try:
            with open(program, "w", encoding="ascii") as file:
                file.write("#!/bin/sh\nexit 3\n")
            os.chmod(program, 0o755)
            code, results, printed = self.check("--torch", self.torch.folder, "--only", "ranks")
        finally:
            os.replace(program + ".away", program)
        self.assertEqual(code, 1, printed)
        self.assertEqual(results["steps"][0]["status"], "failed")

    def test_the_command_line(self):
        code, _, printed = self.check("--list")
        self.assertEqual(code, 0)
        self.assertIn("memcheck", printed)
        code, _, printed = self.check("--only", "kernel")
        self.assertEqual(code, 2)
        self.assertIn("there is no step kernel", printed)

    def is_allowed(self, path):
        """Of the folder, LibTorch with CUDA, the C or the C++ library."""
        folders = [self.bundle.folder, os.path.dirname(self.torch.folder)]
        return pack.OF_THE_MACHINE.fullmatch(os.path.basename(path)) or any(
            os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep) for folder in folders)

    def test_nothing_is_loaded_from_elsewhere(self):
        environment = self.bundle.environment(self.torch, BARE)
        elf = [self.bundle.path(name) for name in self.bundle.manifest["files"] if pack.is_elf(self.bundle.path(name))]
        self.assertGreater(len(elf), 50)
        for path in elf:
            for name, library in pack.needed_by(path, environment).items():
                self.assertTrue(self.is_allowed(library), f"{path} loads {name} from {library}")
        others = re.compile(r"libtorch|libc10|libcu|libnccl|libnv")
        self.assertFalse([path for path in elf if others.match(os.path.basename(path))])
        own = [path for path in elf if "/bin/" in path and "openmpi" not in path or "libzerosched" in path]
        self.assertEqual(len(own), len(self.bundle.programs()) + 1)
        for path in own:
            found = re.findall(r"(?:RUNPATH|RPATH)\s+(\S+)", pack.output_of("objdump", "-p", path))
            self.assertIn(found, (["$ORIGIN/../lib"], ["$ORIGIN"]), path)

    def test_a_running_job_has_loaded_nothing_from_elsewhere(self):
        """Plugins are loaded when it runs."""
        mark = f"gpu-bundle-{os.getpid()}"
        environment = dict(self.bundle.environment(self.torch, BARE), ZEROSCHED_TEST_JOB=mark)
        metrics = os.path.join(self.scratch, "metrics")
        process = subprocess.Popen(
            self.bundle.program("char_gpt", *GPT.split(), "--metrics", metrics, ranks=2), env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 60
            while job.lines_of(metrics) < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            self.assertGreaterEqual(job.lines_of(metrics), 2, "it did not train")
            loaded = {pid: mapped_libraries(pid) for pid in marked_processes(mark)}
        finally:
            kill(marked_processes(mark))
            process.wait()
        self.assertEqual(len(loaded), 3, "mpirun and two ranks")
        for libraries in loaded.values():
            self.assertTrue(any("mca_pmix" in path for path in libraries))
            self.assertFalse([path for path in libraries if not self.is_allowed(path)])

    def program(self, name, *arguments):
        """Figures of a program that writes them."""
        path = os.path.join(self.scratch, "figures")
        done = subprocess.run(self.bundle.program(name, *arguments, "--json", path), capture_output=True, text=True,
                              timeout=100, env=self.bundle.environment(self.torch, BARE))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        with open(path, encoding="utf-8") as file:
            return json.load(file)

    def test_what_is_compared_with_the_timeline(self):
        measured = self.program("bench_step_gpu", *STEP.split())
        self.assertEqual(measured["host"]["parameters"], 150)
        self.assertGreater(measured["host"]["step_seconds"], 0)
        self.assertEqual([memory["dtype"] for memory in measured["memory"]], ["Float", "BFloat16"])
        if "bench_timeline" not in self.bundle.programs():
            self.skipTest("there is no bench_timeline")
        predicted = self.program("bench_timeline", "--models", "124M", "--gpus", "1", "--buckets", "25")[0]
        for part in ("step_seconds", "forward_seconds", "backward_seconds", "update_seconds", "host_seconds"):
            self.assertGreater(predicted[part], 0, part)
            self.assertGreater(measured["step"][part], 0, part)

    def test_a_folder_that_is_too_large_is_refused(self):
        packing = object.__new__(pack.Packing)
        packing.out = self.bundle.folder
        with self.assertRaisesRegex(SystemExit, "more than 1 MiB"):
            packing.check_size(1 << 20)

    def test_what_was_not_packed_is_left_alone(self):
        other = os.path.join(self.scratch, "other")
        os.mkdir(other)
        for name in ("check", "manifest.json"):
            with open(os.path.join(other, name), "w", encoding="ascii") as file:
                file.write("{}")
        with self.assertRaisesRegex(SystemExit, "nothing that tests/gpu/pack has made"):
            pack.main(BUILD, other)
        self.assertEqual(sorted(os.listdir(other)), ["check", "manifest.json"])


if __name__ == "__main__":
    job.main()
