"""The battery's quick comparison: every task learns with every arm, and what is done is not done again."""
import json
import math
import os
import subprocess
import sys
import tempfile
import unittest

import job

FOLDER = os.path.join(os.environ["ZEROSCHED_SOURCE_DIR"], "examples", "battery")
PYTHON = os.environ.get("ZEROSCHED_PYTHON", sys.executable)
# The metric of each task, and what the best constant prediction of the training data has of it: the byte and phoneme
# frequencies, the most frequent class, the median, the mean, the frequencies of letters.
METRICS = {"transformer": ("nats_per_byte", 3.1542), "lstm": ("nats_per_phoneme", 3.2585), "cnn": ("error", 0.9),
           "gnn": ("mae", 1.5436), "recommender": ("rmse", 1.3416), "convex": ("suboptimality", 2.4390)}
PARAMETERS = {"transformer": 113609, "lstm": 105993, "cnn": 19258, "gnn": 44801, "recommender": 77409, "convex": 442}

# Arguments and what the message must name.
BAD_INPUT = [
    ("--lr 1", "--task"),
    ("--task gnn", "--lr"),
    ("--task mlp --lr 1", "mlp"),
    ("--task gnn --lr 0", "--lr"),
    ("--task gnn --lr 1 --optimizer adagrad", "adagrad"),
    ("--task gnn --lr 1 --optimizer sgd --beta2 0.9", "--beta2 is no option of --optimizer sgd"),
    ("--task gnn --lr 1 --momentum 0.9", "--momentum is no option of --optimizer adamw-schedulefree"),
    ("--task gnn --lr 1 --schedule cosine", "--schedule is no option of --optimizer adamw-schedulefree"),
    ("--task gnn --lr 1 --optimizer radam-schedulefree --warmup 5", "--warmup is no option"),
    ("--task gnn --lr 1 --optimizer adamw-schedulefree-plus --warmup 5", "--warmup is no option"),
    ("--task gnn --lr 1 --optimizer adamw --schedule cosine --warmup 10 --steps 10", "--warmup 10"),
    ("--task gnn --lr 1 --steps 10 --evaluate-at 5,11", "--evaluate-at 11"),
    ("--task gnn --lr 1 --batch 2000", "--batch 2000"),
    ("--task gnn --lr 1 --data {folder}", "prepare_data.py gnn"),
    ("--task gnn --lr 1 --out {folder}/missing/out.jsonl", "missing/out.jsonl"),
]


def run_battery(*arguments):
    return job.run([os.path.join(FOLDER, "run"), *arguments], timeout=600)


class Battery(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.out = folder.name

    def battery(self, arguments, *launcher):
        result = job.run([*launcher, job.program("battery"), *arguments.split()])
        self.assertEqual(result.code, 0, result.err)
        return [json.loads(line) for line in result.out.splitlines()]

    def records(self, task):
        with open(os.path.join(self.out, f"{task}.jsonl"), encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def test_quick(self):
        result = run_battery("--quick", "--out", self.out)
        self.assertEqual(result.code, 0, result.err)
        print(result.out)
        for task, (metric, constant) in METRICS.items():
            records = self.records(task)
            last = {}  # arm and length -> metrics at the end
            # Two learning rates: one Schedule-Free arm, two schedules at two lengths.
            self.assertEqual(len(records), 2 * (1 + 2 * 2), task)
            for record in records:
                with self.subTest(task, arguments=record["arguments"]):
                    values = [evaluation["metrics"][metric] for evaluation in record["evaluations"]]
                    self.assertTrue(all(map(math.isfinite, values)), values)
                    self.assertEqual(record["evaluations"][0]["step"], 0)
                    self.assertEqual(record["evaluations"][-1]["step"], record["steps"])
                    self.assertLess(values[-1], values[0])
                    last.setdefault((record["arm"], record["steps"]), []).append(values[-1])
                    self.assertEqual(record["parameters"], PARAMETERS[task])
                    for name in ("date", "commit", "machine", "seed", "settings", "cpu_s", "state_bytes"):
                        self.assertIn(name, record)
            # Whatever has learnt anything from the inputs is better than what does not look at them.
            for arm, values in last.items():
                self.assertLess(min(values), constant, (task, arm))
        for name in ("table.md", "battery.png"):
            self.assertGreater(os.path.getsize(os.path.join(self.out, name)), 500, name)

        again = run_battery("--quick", "--out", self.out)
        self.assertEqual(again.code, 0, again.err)
        self.assertIn("battery: 0 runs started, 60 were there", again.err)
        self.assertEqual(again.out, result.out)

        # A line that was cut off as the machine stopped is one run to be done again, and spoils no other.
        path = os.path.join(self.out, "convex.jsonl")
        with open(path, "r+b") as file:
            file.truncate(os.path.getsize(path) - 20)
        again = run_battery("--quick", "--task", "convex", "--out", self.out)
        self.assertEqual(again.code, 0, again.err)
        self.assertIn("battery: 1 runs started, 9 were there", again.err)
        again = run_battery("--quick", "--task", "convex", "--out", self.out)
        self.assertIn("battery: 0 runs started, 10 were there", again.err)

    def test_every_optimizer_learns(self):
        for optimizer, options in (("adamw-schedulefree", "--lr 0.03"), ("adamw-schedulefree-paper", "--lr 0.03"),
                                   ("radam-schedulefree", "--lr 0.03"), ("sgd-schedulefree", "--lr 1"),
                                   ("adamw-schedulefree", "--lr 0.03 --refinement 20 --inner-momentum 0.9"),
                                   ("adamw-schedulefree-plus", "--lr 0.3"),
                                   ("gpa-adamw", "--lr 0.03 --eval-interp 0.99"),
                                   ("adamw", "--lr 0.03 --schedule linear --warmup 20"),
                                   ("sgd", "--lr 0.1 --momentum 0.9 --nesterov --schedule cosine")):
            with self.subTest(optimizer):
                lines = self.battery(f"--task convex --optimizer {optimizer} {options} --steps 2000 "
                                     "--evaluate-at 0,2000")
                start, end = (line["metrics"] for line in lines if line["kind"] == "evaluation")
                self.assertLess(end["suboptimality"], 0.1 * start["suboptimality"])
                # That of the nearest mean of a class, which needs no optimizer.
                self.assertLess(end["test_error"], 0.4445)
                self.assertFalse(lines[-1]["diverged"])

    def test_divergence_is_a_result(self):
        for launcher in ([], job.mpirun(2)):
            lines = self.battery("--task gnn --lr 1e30 --steps 50", *launcher)
            self.assertTrue(lines[-1]["diverged"])
            self.assertLess(lines[-1]["steps"], 50)

    def test_same_run_gives_same_bits(self):
        def evaluations():
            lines = self.battery("--task lstm --lr 0.02 --steps 20 --seed 3")
            return [(line["metrics"], line["training_loss"]) for line in lines if line["kind"] == "evaluation"]
        self.assertEqual(evaluations(), evaluations())

    def test_bad_input(self):
        for arguments, named in BAD_INPUT:
            for launcher in ([], *[job.mpirun(2)] * (named in ("--task", "prepare_data.py gnn"))):
                with self.subTest(arguments, launcher=launcher):
                    result = job.run([*launcher, job.program("battery"), *arguments.format(folder=self.out).split()])
                    self.assertEqual(result.code, 2, result)
                    messages = [line for line in result.err.splitlines() if named in line]
                    self.assertEqual(len(messages), 1, result)
                    self.assertTrue(messages[0].startswith("battery: "), messages)
        result = job.run([*job.mpirun(3), job.program("battery"), "--task", "cnn", "--lr", "1"])
        self.assertEqual(result.code, 2, result)
        self.assertIn("--batch 64 cannot be cut over 3 ranks", result.err)


if __name__ == "__main__":
    PREPARED = subprocess.run([PYTHON, "-B", os.path.join(FOLDER, "prepare_data.py")], capture_output=True, text=True,
                              check=False)
    if PREPARED.returncode != 0:
        job.skip(PREPARED.stderr.strip())
    job.main()
