"""Breaks copies of the CUDA kernels in the ways that such code goes wrong; the sanitizers must see each.

usage: mutation_test.py COMPILER SOURCES OBJECT... -- OBJECT... -- FLAG...
SOURCES: the folder that holds kernels/. The objects are those of cuda_shim_program, for ASan and UBSan, then those
of cuda_shim_program_tsan. One of them, of the broken unit, is replaced. FLAGS: for both, without -fsanitize.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import unittest

SANITIZERS = {"asan": "address,undefined", "tsan": "thread"}


class Mutations(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def run_with(self, unit, program, file=None, old=None, new=None):
        """The program's exit code and output, with one unit built of a copy in which `old` became `new`."""
        root = self.folder.name
        shutil.copytree(os.path.join(SOURCES, "kernels"), os.path.join(root, "kernels"))
        if file is not None:
            path = os.path.join(root, "kernels", "cuda", file)
            with open(path, encoding="utf-8") as source:
                text = source.read()
            self.assertEqual(text.count(old), 1, f"{file} does not hold this once: {old}")
            with open(path, "w", encoding="utf-8") as source:
                source.write(text.replace(old, new))
        # The copy comes first, before the same headers in SOURCES.
        flags = ["-I" + root] + FLAGS + [f"-fsanitize={SANITIZERS[program]}", "-fno-sanitize-recover=all"]
        built = os.path.join(root, unit + ".o")
        self.command([COMPILER, *flags, "-x", "c++", "-c", os.path.join(root, "kernels", "cuda", unit), "-o", built])
        objects = [path for path in OBJECTS[program] if os.path.basename(path) != unit + ".o"]
        self.assertEqual(len(objects), len(OBJECTS[program]) - 1, f"{unit} is not a unit of the program")
        binary = os.path.join(root, "program")
        self.command([COMPILER, *flags, built, *objects, "-pthread", "-o", binary])
        environment = dict(os.environ, TSAN_OPTIONS="halt_on_error=1")
        done = subprocess.run([binary], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
                              env=environment)
        return done.returncode, done.stdout

    def command(self, arguments):
        done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
        self.assertEqual(done.returncode, 0, done.stdout[-3000:])

    def expect_caught(self, report, unit, program, file, old, new):
        code, output = self.run_with(unit, program, file, old, new)
        self.assertNotEqual(code, 0, "the broken kernels passed")
        self.assertRegex(output, report)

    def test_unchanged_copies_pass(self):
        for program in ("asan", "tsan"):
            with self.subTest(program=program):
                code, output = self.run_with("gradient_norm.cu", program)
                self.assertEqual(code, 0, output[-3000:])
                shutil.rmtree(os.path.join(self.folder.name, "kernels"))

    def test_one_element_too_many(self):
        self.expect_caught(
            r"heap-buffer-overflow[\s\S]*update_kernel", "update_float32.cu", "asan", "update.cuh",
            "i = in_packs + threadIdx.x; i < tile.numel;", "i = in_packs + threadIdx.x; i <= tile.numel;")

    def test_one_pack_too_many(self):
        self.expect_caught(
            r"heap-buffer-overflow[\s\S]*update_kernel", "update_float32.cu", "asan", "update.cuh",
            "tile.numel / kCount * kCount", "(tile.numel + kCount - 1) / kCount * kCount")

    def test_misaligned_pack(self):
        self.expect_caught(
            "misaligned address", "update_float32.cu", "asan", "device.cuh", "(pointer) % 16 == 0",
            "(pointer) % 2 == 0")

    def test_one_clamped_element_too_many(self):
        self.expect_caught(
            r"heap-buffer-overflow[\s\S]*clamp_kernel", "clamp_gradient.cu", "asan", "clamp_gradient.cuh",
            "i = in_packs + threadIdx.x; i < tile.numel;", "i = in_packs + threadIdx.x; i <= tile.numel;")

    def test_one_packed_element_too_many(self):
        self.expect_caught(
            r"heap-buffer-overflow[\s\S]*pack_kernel", "pack.cu", "asan", "pack.cuh",
            "numel / kCount * kCount : 0;", "(numel + kCount - 1) / kCount * kCount : 0;")

    def test_a_gap_that_is_not_zeroed(self):
        self.expect_caught(
            "DIFFERS: pack", "pack.cu", "asan", "pack.cuh", "zero_elements(to + done, copy_begin - done, lane);", "")

    def test_flags_of_the_launches_before(self):
        self.expect_caught(
            "DIFFERS: pack", "pack.cu", "asan", "pack.cuh", "slice_begin < a.begin ? a.flags_before : 0", "0")

    def test_32_bit_slots(self):
        self.expect_caught(
            "SEGV|DIFFERS: elements beyond 2.31", "pack.cu", "asan", "pack.cuh",
            "const int64_t copy_begin = slot_begin > begin ? slot_begin : begin;",
            "const int copy_begin = static_cast<int>(slot_begin > begin ? slot_begin : begin);")

    def test_a_nan_that_is_not_seen(self):
        self.expect_caught(
            "DIFFERS: not finite", "update_float32.cu", "asan", "update.cuh", "finite != 0 &&", "finite > 0 &&")

    def test_a_flag_that_threads_race_for(self):
        self.expect_caught(
            r"data race[\s\S]*update_kernel", "update_float32.cu", "tsan", "update.cuh",
            "atomicOr(a.not_finite, 1)", "*a.not_finite = 1")

    def test_coefficients_read_before_they_are_there(self):
        # In an order of threads that is not their own; in their own the first thread comes first.
        barrier = "  __syncthreads();\n  const Coefficients s"
        self.expect_caught("DIFFERS: update", "update_float32.cu", "asan", "update.cuh", barrier, barrier[18:])

    def test_coefficients_read_before_they_are_there_by_tsan(self):
        barrier = "  __syncthreads();\n  const Coefficients s"
        self.expect_caught(
            r"data race[\s\S]*update_kernel", "update_float32.cu", "tsan", "update.cuh", barrier, barrier[18:])

    def test_sums_read_before_they_are_there(self):
        barrier = "  __syncthreads();\n  if (threadIdx.x < kSumGroups)"
        self.expect_caught(
            "DIFFERS: sum of squares", "sum_of_powers.cu", "asan", "sum_of_powers.cuh", barrier, barrier[18:])

    def test_sums_read_before_they_are_there_by_tsan(self):
        barrier = "  __syncthreads();\n  if (threadIdx.x < kSumGroups)"
        self.expect_caught(
            r"data race[\s\S]*sum_tiles_kernel", "sum_of_powers.cu", "tsan", "sum_of_powers.cuh", barrier,
            barrier[18:])

    def test_threads_that_miss_a_barrier(self):
        barrier = "  __syncthreads();\n  const Coefficients s"
        self.expect_caught(
            "divergent barrier: 255 of 256 threads", "update_float32.cu", "asan", "update.cuh", barrier,
            "  if (threadIdx.x == 7) return;\n" + barrier)

    def test_shared_memory_overrun(self):
        self.expect_caught(
            "index 32 out of bounds", "sum_of_powers.cu", "asan", "sum_of_powers.cuh", "group_sums[group] =",
            "group_sums[group + 1] =")

    def test_32_bit_index(self):
        self.expect_caught(
            "SEGV|DIFFERS: elements beyond 2.31", "update_bfloat16.cu", "asan", "update.cuh",
            "const int64_t begin = span.begin + tile.begin;",
            "const int begin = static_cast<int>(span.begin + tile.begin);")


if __name__ == "__main__":
    COMPILER, SOURCES = sys.argv[1:3]
    asan, tsan, FLAGS = " ".join(sys.argv[3:]).split(" -- ")
    OBJECTS, FLAGS = {"asan": asan.split(), "tsan": tsan.split()}, FLAGS.split()
    unittest.main(argv=sys.argv[:1], verbosity=2)
