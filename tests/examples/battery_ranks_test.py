"""The battery with the same global batch on one rank and on more: the same curves but for the order of additions."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

import job

FOLDER = os.path.join(os.environ["ZEROSCHED_SOURCE_DIR"], "examples", "battery")
PYTHON = os.environ.get("ZEROSCHED_PYTHON", sys.executable)


class Ranks(unittest.TestCase):
    def test_sharded_changes_nothing(self):
        with tempfile.TemporaryDirectory() as folder:
            out = os.path.join(folder, "ranks.jsonl")
            result = job.run([os.path.join(FOLDER, "run"), "--ranks", "--share", "128", "--sizes", "4", "--dtype",
                              "float64", "--out", out], timeout=500)
            print(result.out)
            self.assertEqual(result.code, 0, result.err)
            with open(out, encoding="utf-8") as file:
                runs = {(run["task"], run["ranks"]): run for run in map(json.loads, file)}
        self.assertEqual(len(runs), 6 * 2)
        for (task, ranks), run in runs.items():
            with self.subTest(task, ranks=ranks):
                self.assertEqual(run["world_size"], ranks)
                metrics = [json.dumps(evaluation["metrics"]) for evaluation in run["evaluations"]]
                self.assertGreater(len(set(metrics)), 3)  # of curves that did not move the comparison would say nothing
                # Every rank's share of the state is padded to 128 bytes, and what is small is padding mostly.
                whole = runs[task, 1]["state_bytes"]
                self.assertLess(abs(ranks * run["state_bytes"] - whole), 0.01 * whole + 3 * 128 * 3 * ranks)


if __name__ == "__main__":
    PREPARED = subprocess.run([PYTHON, "-B", os.path.join(FOLDER, "prepare_data.py")], capture_output=True, text=True,
                              check=False)
    if PREPARED.returncode != 0:
        job.skip(PREPARED.stderr.strip())
    unittest.main(verbosity=2)
