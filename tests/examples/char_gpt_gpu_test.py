"""char_gpt on GPUs: it learns what it learns on the CPU, over each transport, and resumes."""
import os
import shutil
import subprocess
import tempfile
import unittest

import job

SIZES = ("--synthetic --dim 64 --layers 2 --heads 4 --batch 8 --seq 64 --warmup-steps 10 --eval-batches 4 "
         "--threads 1 --progress off").split()
STEPS = 40
# Float32 in another order of summation, 40 steps long.
NEAR = 5e-3


def visible_gpus():
    """As char_gpt sees them; with why, where there are none."""
    probe = job.run([job.program("char_gpt"), *SIZES, "--steps", "1", "--device", "cuda"])
    if probe.code == 0:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
        return max(1, listed.stdout.count("GPU ")), ""
    return 0, probe.err.strip()


class CharGptOnGpu(unittest.TestCase):
    gpus = 0

    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)

    def train(self, ranks, *arguments, steps=STEPS):
        launcher = job.mpirun(ranks) if ranks > 1 else []
        command = [*launcher, job.program("char_gpt"), *SIZES, "--steps", str(steps), *arguments]
        return job.train(command, timeout=280)[0]

    def check_near(self, report, other):
        for key in ("first_loss", "last_loss", "eval_loss_x", "eval_loss_y"):
            self.assertLess(abs(report[key] - other[key]) / other[key], NEAR, key)

    def test_alone(self):
        self.check_near(self.train(1, "--device", "cuda"), self.train(1, "--device", "cpu"))

    def test_clipped_and_bfloat16(self):
        options = ("--dtype", "bfloat16", "--max-grad-norm", "1")
        gpu = self.train(1, "--device", "cuda", *options)
        self.assertLess(abs(gpu["eval_loss_x"] / self.train(1, "--device", "cpu", *options)["eval_loss_x"] - 1), 0.03)

    def test_ranks_share_a_gpu_over_mpi(self):
        self.check_near(self.train(2, "--device", "cuda", "--comm", "mpi"),
                        self.train(2, "--device", "cpu", "--comm", "mpi"))

    def test_nccl(self):
        ranks = min(self.gpus, 4)
        self.check_near(self.train(ranks, "--device", "cuda", "--comm", "nccl"),
                        self.train(ranks, "--device", "cpu", "--comm", "mpi"))

    def test_resumes(self):
        folder = os.path.join(self.folder, "checkpoints")
        whole = self.train(1, "--device", "cuda", "--dropout", "0.1")
        self.train(1, "--device", "cuda", "--dropout", "0.1", "--checkpoint-dir", folder,
                   steps=STEPS // 2)
        self.check_near(self.train(1, "--device", "cuda", "--dropout", "0.1", "--checkpoint-dir", folder, "--resume"),
                        whole)


if __name__ == "__main__":
    CharGptOnGpu.gpus, reason = visible_gpus()
    if CharGptOnGpu.gpus == 0:
        job.skip(reason)
    unittest.main(verbosity=2)
