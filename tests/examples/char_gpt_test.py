"""char_gpt trains: its figures, its files, and the same bits twice."""
import fcntl
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
import unittest

import job
import processes

DIM, LAYERS, SEQ, STEPS = 64, 2, 32, 60
KEYS = {"params", "world_size", "median_step_s", "min_step_s", "mean_step_s", "peak_rss_mib", "first_loss",
        "last_loss", "eval_loss_x", "eval_loss_y", "state_bytes"}


def parameter_count(dim, layers, seq, vocabulary=256):
    linear = lambda rows, columns: rows * columns + columns
    block = (2 * 2 * dim + linear(dim, 3 * dim) + linear(dim, dim)
             + linear(dim, 4 * dim) + linear(4 * dim, dim))
    return vocabulary * dim + seq * dim + layers * block + 2 * dim + dim * vocabulary


def wait_until(condition, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s; exit code {process.returncode}")
        time.sleep(0.05)


class SlowReader:
    """A pipe that is emptied only once whoever writes into it has been blocked for a while, however fast that is."""

    SECONDS = 0.5

    def __init__(self, path):
        os.mkfifo(path)
        self.end = os.open(path, os.O_RDWR)  # for writing too: it is open before and after each writer
        fcntl.fcntl(self.end, 1031, 4096)  # F_SETPIPE_SZ: some 40 lines of metrics
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.read)
        self.thread.start()

    def bytes_in_it(self):
        count = fcntl.ioctl(self.end, termios.FIONREAD, b"\0" * 4)
        return int.from_bytes(count, sys.byteorder)

    def read(self):
        before = 0
        while not self.stopping.wait(self.SECONDS):
            now = self.bytes_in_it()
            if now > 0 and now == before:
                os.read(self.end, now)
            before = now

    def stop(self):
        self.stopping.set()
        self.thread.join()
        os.close(self.end)


class CharGpt(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp()
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        cls.text = os.path.join(cls.folder, "text")
        words = "and the of that to in he shall unto for his a lord they be is him not them with".split()
        generator = random.Random(1)
        with open(cls.text, "w") as text:
            text.write(" ".join(generator.choice(words) for _ in range(20000)))
        cls.metrics = os.path.join(cls.folder, "metrics.jsonl")
        cls.report, cls.result = cls.train(2, "--eval-every", "20", "--sample", "40",
                                           "--metrics", cls.metrics, "--progress", "live")

    @classmethod
    def train(cls, ranks, *arguments, steps=STEPS):
        sizes = dict(dim=DIM, layers=LAYERS, heads=4, batch=8, seq=SEQ, steps=steps, threads=1)
        sizes["eval-batches"], sizes["warmup-steps"] = 4, 10
        options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
        launcher = job.mpirun(ranks) if ranks > 1 else []
        return job.train([*launcher, job.program("char_gpt"), "--data", cls.text, *options, *arguments])

    def check_state_bytes(self, report, ranks):
        per_rank = 12 * report["params"] / ranks
        self.assertGreaterEqual(report["state_bytes"], per_rank)
        self.assertLess(report["state_bytes"], 1.05 * per_rank)  # padding

    def check_learned(self, report, x_below=2.6):
        self.assertAlmostEqual(report["first_loss"], math.log(256), delta=0.6)
        for loss in ("last_loss", "eval_loss_y"):
            self.assertLess(report[loss], 2.6, loss)
        self.assertLess(report["eval_loss_x"], x_below)

    def test_report(self):
        self.assertLessEqual(KEYS, self.report.keys())
        self.assertEqual(self.report["params"], parameter_count(DIM, LAYERS, SEQ))
        self.assertEqual(self.report["world_size"], 2)
        self.assertLessEqual(self.report["min_step_s"], min(self.report["median_step_s"], self.report["mean_step_s"]))
        self.check_state_bytes(self.report, 2)
        self.check_learned(self.report)

    def test_progress_is_live(self):
        self.assertIn("\r", self.result.err)
        self.assertIn(f"step {STEPS}/{STEPS}", self.result.err)
        self.assertIn("tokens/s", self.result.err)

    def test_sample(self):
        sample = self.result.out.split("Sample:\n")[1].rsplit("\n", 2)[0]
        self.assertEqual(len(sample), 40, self.result.out)

    def test_metrics(self):
        with open(self.metrics) as file:
            lines = [json.loads(line) for line in file]
        self.assertEqual([line["step"] for line in lines], list(range(1, STEPS + 1)))
        self.assertEqual([line["step"] for line in lines if "eval_loss_x" in line], [20, 40, 60])
        self.assertEqual(lines[-1]["loss"], self.report["last_loss"])
        self.assertEqual(lines[-1]["eval_loss_x"], self.report["eval_loss_x"])

    def test_same_job_gives_same_bits(self):
        again, _ = self.train(2)  # evaluation, sampling and metrics must not change training either
        for loss in ("first_loss", "last_loss", "eval_loss_x", "eval_loss_y"):
            self.assertEqual(again[loss], self.report[loss], loss)

    def test_forward_while_parameters_arrive_gives_the_same_bits(self):
        for flags in ([], ["--check-ready"]):
            report, _ = self.train(2, "--bucket-bytes", "20000", "--overlap-forward", *flags)  # several per block
            for loss in ("first_loss", "last_loss", "eval_loss_x", "eval_loss_y"):
                self.assertEqual(report[loss], self.report[loss], (loss, flags))

    def test_alone(self):
        report, _ = self.train(1)
        self.assertEqual(report["world_size"], 1)
        self.check_state_bytes(report, 1)
        self.check_learned(report)

    def test_bfloat16(self):
        report, _ = self.train(2, "--dtype", "bfloat16", "--max-grad-norm", "1", "--bucket-bytes", "65536")
        self.check_state_bytes(report, 2)
        self.check_learned(report)

    def test_every_optimizer_learns(self):
        for name, lr in (("adamw-schedulefree-paper", 5e-3), ("radam-schedulefree", 5e-3), ("sgd-schedulefree", 1.0),
                         ("gpa-adamw", 5e-3), ("adamw-schedulefree-plus", 1.0), ("adamw", 5e-3), ("sgd", 0.1)):
            with self.subTest(name):
                report, _ = self.train(2, "--optimizer", name, "--lr", str(lr), "--weight-decay", "0")
                # The x of GPAAdamW averages over some 300 steps, of which these are the first 60.
                self.check_learned(report, x_below=4 if name == "gpa-adamw" else 2.6)

    def test_resumed_run_continues_bit_for_bit(self):
        with tempfile.TemporaryDirectory() as folder:
            def train(name, steps, *arguments):
                run = os.path.join(folder, name)
                report, _ = self.train(2, "--dropout", "0.2", "--checkpoint-dir", run, "--export", run + ".safetensors",
                                       "--metrics", run + ".jsonl", *arguments, steps=steps)
                with open(run + ".safetensors", "rb") as exported, open(run + ".jsonl") as metrics:
                    return report, exported.read(), [json.loads(line) for line in metrics]
            whole, whole_export, whole_metrics = train("whole", 30)
            # --resume without anything to resume starts anew: the same command can be given again and again.
            train("parts", 20, "--resume", "--checkpoint-every", "8", "--keep-checkpoints", "2")
            self.assertEqual(sorted(os.listdir(folder + "/parts")), ["latest", "step_00000016", "step_00000020"])
            parts, parts_export, parts_metrics = train("parts", 30, "--resume")
            for figure in ("first_loss", "last_loss", "eval_loss_x", "eval_loss_y"):
                self.assertEqual(parts[figure], whole[figure], figure)
            self.assertEqual(parts_export, whole_export)
            self.assertEqual([line["loss"] for line in parts_metrics], [line["loss"] for line in whole_metrics])
            # From a folder, and once more from the end.
            again, again_export, _ = train("again", 30, "--resume", folder + "/parts/step_00000020")
            self.assertEqual(again_export, whole_export)
            self.assertEqual(train("parts", 30, "--resume")[0]["eval_loss_x"], whole["eval_loss_x"])
            other_size, _ = self.train(3, "--checkpoint-dir", folder + "/parts", "--resume", steps=40)
            self.check_learned(other_size)

    def test_signal_stops_with_a_checkpoint(self):
        with tempfile.TemporaryDirectory() as folder:
            command = [*job.mpirun(2), job.program("char_gpt"), "--data", self.text, "--dim", "32", "--layers", "1",
                       "--seq", "16", "--batch", "2", "--steps", "1000000", "--checkpoint-dir", folder, "--metrics",
                       folder + "/metrics"]
            for resume in [], ["--resume"]:
                before = job.lines_of(folder + "/metrics")
                environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
                process = subprocess.Popen(command + resume, env=environment, stderr=subprocess.PIPE, text=True)
                try:
                    wait_until(lambda: job.lines_of(folder + "/metrics") > before + 10, process)
                    process.send_signal(signal.SIGUSR1)
                    _, err = process.communicate(timeout=60)
                finally:
                    process.kill()
                self.assertEqual(process.returncode, 75, err)
                self.assertIn("stopped by a signal after step", err)
                steps = job.lines_of(folder + "/metrics")
                self.assertEqual(os.readlink(folder + "/latest"), f"step_{steps:08d}")

    def check_straggler(self, report, result, rank):
        """`rank` keeps the others waiting in what it does between steps, and all that is printed says so."""
        self.assertEqual(len(report["ranks"]), report["world_size"])
        means = [phases["mean_s"] for phases in report["ranks"]]
        self.assertEqual(report["straggler"], rank, result.err)
        own_work = [mean["between_steps"] - mean["wait_between_steps"] for mean in means]
        self.assertEqual(max(own_work), own_work[rank], means)
        header, *lines = result.err[result.err.index("Milliseconds per step over "):].splitlines()
        self.assertEqual(header, f"Milliseconds per step over {report['steps']} steps, mean / worst:")
        self.assertIn("waiting", lines[0])
        self.assertEqual(lines[1].split()[:3], ["rank", "steps", "between"], lines)
        self.assertEqual([line.split()[0] for line in lines[2:2 + len(means)]], [str(r) for r in range(len(means))])
        self.assertRegex(lines[2 + len(means)], f"^Rank {rank} keeps the others waiting: .* ms per step longer than it "
                                                "waits itself; it takes longer between steps, outside backward[.]$")

    # Ranks wait for each other before each step: in a barrier, and with checkpoints in a StopSignal.
    def test_straggler_that_writes_slowly(self):
        for checkpoints in False, True:
            with self.subTest(checkpoints=checkpoints), tempfile.TemporaryDirectory() as folder:
                reader = SlowReader(folder + "/metrics")
                try:
                    report, result = job.train([
                        *job.mpirun(3), job.program("char_gpt"), "--synthetic", "--dim", "16", "--layers", "1", "--seq",
                        "16", "--batch", "2", "--steps", "200", "--metrics", folder + "/metrics",
                        *(["--checkpoint-dir", folder + "/checkpoints"] if checkpoints else [])])
                finally:
                    reader.stop()
                self.check_straggler(report, result, 0)

    def test_straggler_that_is_stopped_again_and_again(self):
        with tempfile.TemporaryDirectory() as folder:
            metrics = folder + "/metrics"
            run = job.Job([*job.mpirun(3), job.program("char_gpt"), "--synthetic", "--dim", str(DIM), "--layers", "2",
                           "--steps", "60", "--metrics", metrics, "--json"])
            run.wait_for(lambda: job.lines_of(metrics) > 2, "its first steps")
            pid = run.ranks()[1]
            while job.lines_of(metrics) < 58 and run.process.poll() is None:
                processes.kill([pid], signal.SIGSTOP)
                time.sleep(0.05)
                processes.kill([pid], signal.SIGCONT)
                time.sleep(0.02)
            result = run.end()
        self.assertEqual(result.code, 0, result)
        report = json.loads(result.out.splitlines()[-1])
        self.assertEqual(report["straggler"], 1, result.err)
        self.assertIn("Rank 1 keeps the others waiting: ", result.err)

    def test_synthetic(self):
        report, _ = job.train([job.program("char_gpt"), "--synthetic", "--steps", "3", "--dim", "16",
                               "--layers", "1"])
        self.assertEqual(report["params"], parameter_count(16, 1, 64))


if __name__ == "__main__":
    unittest.main(verbosity=2)
