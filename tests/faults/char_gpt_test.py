"""Jobs of char_gpt that die for want of space, or that cannot begin: every rank ends, one message says why, and what was
saved is taken up to the very bits of an undisturbed job.

usage: char_gpt_test.py CASE
"""
import json
import os
import shutil
import subprocess
import tempfile
import unittest

import job
import tiny_gpt

RANKS = 2


class Jobs(unittest.TestCase):
    def setUp(self):
        self.root = tempfile.mkdtemp(prefix="zerosched-test-")
        self.addCleanup(shutil.rmtree, self.root)

    def folder(self, name):
        path = os.path.join(self.root, name)
        os.mkdir(path)
        return path

    def start(self, folder, *arguments, **more):
        return job.run([*job.mpirun(RANKS), *tiny_gpt.command(folder, *arguments, **more)])


class FullDisk(Jobs):
    def disk(self, size):
        path = self.folder("disk")
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], stderr=subprocess.PIPE,
                                 text=True, check=False)
        if mounted.returncode != 0:
            self.skipTest(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
        self.addCleanup(subprocess.run, ["umount", path], check=True)
        return path

    def make_space(self, disk):
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)

    def test_checkpoint(self):
        steps = ["--steps", "30", "--checkpoint-every", "10"]
        whole = tiny_gpt.undisturbed(self.folder("whole"), RANKS, *steps)
        disk = self.disk("300k")  # of one checkpoint and a half
        result = self.start(disk, *steps)
        self.assertEqual(result.code, 70, result)
        for rank in range(RANKS):
            self.assertRegex(result.err, f"zerosched: rank {rank} stops: .*No space left on device")
        self.assertIn(f"{disk}/checkpoints/.step_00000020.partial/", result.err)
        self.assertEqual(sorted(os.listdir(f"{disk}/checkpoints")), ["latest", "step_00000010"])
        self.make_space(disk)
        self.assertEqual(tiny_gpt.undisturbed(disk, RANKS, *steps), whole)

    def test_metrics_of_rank_0(self):
        steps = ["--steps", "200", "--checkpoint-every", "20"]
        whole = self.folder("whole")
        tiny_gpt.undisturbed(whole, RANKS, *steps)
        disk = self.disk("16k")  # full in the middle of training
        folder = self.folder("run")
        os.symlink(f"{disk}/metrics", f"{folder}/metrics")
        result = self.start(folder, *steps)
        self.assertEqual(result.code, 70, result)
        why = f"cannot write --metrics {folder}/metrics: No space left on device"
        self.assertIn(f"zerosched: rank 0 stops: {why}", result.err)
        self.assertRegex(result.err, "zerosched: rank 1 stops: (.*: )?rank 0: ")
        saved = os.readlink(f"{folder}/checkpoints/latest")
        self.assertTrue("step_00000020" <= saved < "step_00000200", saved)
        self.make_space(disk)
        self.assertEqual(tiny_gpt.undisturbed(folder, RANKS, *steps), tiny_gpt.export_in(whole))
        self.assertEqual(self.losses(folder), self.losses(whole))

    def losses(self, folder):
        with open(f"{folder}/metrics", encoding="utf-8") as file:
            return [json.loads(line)["loss"] for line in file]


class WrongCheckpoint(Jobs):
    def test_is_refused_with_one_message(self):
        steps = ["--steps", "10", "--checkpoint-every", "5"]
        folder = self.folder("run")
        whole = tiny_gpt.undisturbed(folder, RANKS, *steps)
        checkpoints = f"{folder}/checkpoints"
        file = "step_00000005/rank_00001.safetensors"
        with open(f"{checkpoints}/{file}", "rb") as shard:
            content = shard.read()

        flipped = f"{folder}/flipped"
        shutil.copytree(checkpoints, flipped)
        with open(f"{flipped}/{file}", "wb") as damaged:
            damaged.write(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
        good = f"{checkpoints}/step_00000005"
        for number, (checkpoint, dim, named) in enumerate((
                (good, 32, "'tok.weight' has shape [256, 16] there and [256, 32] here"),
                (f"{flipped}/step_00000005", 16, file), (f"{folder}/none", 16, f"{folder}/none"))):
            with self.subTest(checkpoint=checkpoint, dim=dim):
                result = self.start(self.folder(str(number)), dim=dim, resume=checkpoint)
                self.assertEqual(result.code, 2, result)
                messages = [line for line in result.err.splitlines() if named in line]
                self.assertEqual(len(messages), 1, result)
                self.assertTrue(messages[0].startswith("char_gpt: "), messages)
        # It was left as it was.
        os.remove(f"{folder}/model.safetensors")
        self.assertEqual(self.start(folder, *steps, resume=good).code, 0)
        self.assertEqual(tiny_gpt.export_in(folder), whole)


if __name__ == "__main__":
    job.main()
