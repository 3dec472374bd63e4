"""Batch jobs in a real Slurm of two nodes: launch/slurm/*.sbatch start trainers across both, pass signals on, requeue,
and keep exit codes; launch/doctor reads the allocation."""
import json
import os
import re
import sys
import tempfile
import time
import unittest

import job
import lab
import tiny_gpt

SCRIPTS = ("mpirun.sbatch", "srun.sbatch")
HERE = os.path.dirname(os.path.abspath(__file__))
LAB = lab.Slurm()


def setUpModule():
    LAB.up()
    unittest.addModuleCleanup(LAB.down)


def losses(metrics):
    """What training computed, without what depends on time."""
    with open(metrics, encoding="utf-8") as file:
        return [{name: value for name, value in json.loads(line).items() if "loss" in name} for line in file]


def folder_of(test):
    folder = os.path.join(LAB.shared, test.id().rsplit(".", 1)[1])
    os.makedirs(folder, exist_ok=True)
    return tempfile.mkdtemp(dir=folder)


class Jobs(unittest.TestCase):
    def submit(self, folder, *arguments):
        """The number of the job, which begins some time."""
        result = LAB.run("sbatch", "--parsable", f"--output={folder}/log", *arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout.strip()

    def sbatch(self, folder, script, *program, options=(), wait=True):
        """Number and exit code of a job; the code is None unless it is waited for."""
        number = self.submit(folder, *options, os.path.join(lab.SOURCE, "launch", "slurm", script), *program)
        return number, self.code_of(number) if wait else None

    def log(self, folder):
        with open(os.path.join(folder, "log"), encoding="utf-8", errors="replace") as file:
            return file.read()

    def wait_for_files(self, folder, *names, timeout=60):
        deadline = time.monotonic() + timeout
        while not all(os.path.exists(os.path.join(folder, name)) for name in names):
            if time.monotonic() > deadline:
                log = self.log(folder) if os.path.exists(os.path.join(folder, "log")) else "no log"
                self.fail(f"{names} are not there after {timeout} s, but {os.listdir(folder)}\n{log}\n"
                          f"{LAB.run('scontrol', 'show', 'jobs').stdout}")
            time.sleep(0.1)

    def state(self, number):
        return dict(re.findall(r"(\w+)=(\S*)", LAB.run("scontrol", "show", "job", number).stdout))

    def wait_for_end(self, number, timeout=60):
        deadline = time.monotonic() + timeout
        while self.state(number)["JobState"] not in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"):
            self.assertLess(time.monotonic(), deadline, self.state(number))
            time.sleep(0.2)
        return self.state(number)

    def code_of(self, number):
        """The exit code of a job once it has ended: `sbatch --wait` would ask for it only every few seconds."""
        code, by_signal = map(int, self.wait_for_end(number, timeout=120)["ExitCode"].split(":"))
        return 128 + by_signal if by_signal else code

    def test_char_gpt_computes_what_it_computes_under_mpirun(self):
        folder = folder_of(self)
        arguments = ["--synthetic", "--steps", "12", "--dim", "32", "--layers", "1", "--batch", "4", "--seq", "32",
                     "--eval-every", "6", "--progress", "off"]
        here = os.path.join(folder, "here.jsonl")
        result = job.run([*job.mpirun(2), job.program("char_gpt"), *arguments, "--metrics", here])
        self.assertEqual(result.code, 0, result.err)
        self.assertEqual(len(losses(here)), 12)
        for script in SCRIPTS:
            with self.subTest(script):
                metrics = os.path.join(folder, script + ".jsonl")
                _, code = self.sbatch(folder, script, job.program("char_gpt"), *arguments, "--metrics", metrics)
                self.assertEqual(code, 0, self.log(folder))
                self.assertEqual(losses(metrics), losses(here))

    def test_ranks_are_on_both_nodes(self):
        for script in SCRIPTS:
            with self.subTest(script):
                folder = folder_of(self)
                _, code = self.sbatch(folder, script, "sh", "-c", "echo on $(hostname) with $OMP_NUM_THREADS threads",
                                      options=["--ntasks-per-node=2", "--cpus-per-task=2"])
                self.assertEqual(code, 0, self.log(folder))
                lines = sorted(line for line in self.log(folder).splitlines() if line.startswith("on "))
                self.assertEqual(lines, ["on n1 with 2 threads"] * 2 + ["on n2 with 2 threads"] * 2)

    def test_exit_code_is_kept(self):
        for script in SCRIPTS:
            with self.subTest(script):
                folder = folder_of(self)
                number, code = self.sbatch(folder, script, "sh", "-c", "exit 70")
                self.assertEqual(code, 70, self.log(folder))
                self.assertEqual(self.state(number)["Restarts"], "0")

    def test_rank_that_dies_ends_the_job(self):
        rank_1_dies = "[ ${OMPI_COMM_WORLD_RANK:-$PMIX_RANK} = 0 ] || kill -9 $$; sleep 300"
        for script in SCRIPTS:
            with self.subTest(script):
                folder = folder_of(self)
                start = time.monotonic()
                _, code = self.sbatch(folder, script, "sh", "-c", rank_1_dies)
                self.assertEqual(code, 128 + 9, self.log(folder))
                self.assertLess(time.monotonic() - start, 100)

    def check_requeued(self, folder, number):
        self.wait_for_files(folder, "checkpoint.0", "checkpoint.1", timeout=100)
        self.wait_for_files(folder, "finished.0", "finished.1", timeout=100)
        state = self.wait_for_end(number)
        self.assertEqual((state["JobState"], state["Restarts"], state["ExitCode"]), ("COMPLETED", "1", "0:0"))
        nodes = set()
        for rank in range(2):
            with open(os.path.join(folder, f"finished.{rank}"), encoding="ascii") as file:
                node, restarts = file.read().split()
            nodes.add(node)
            self.assertEqual(restarts, "1")
        self.assertEqual(nodes, {"n1", "n2"})
        self.assertIn("goes back to the queue", self.log(folder))

    def test_signal_requeues(self):
        # For mpirun.sbatch, char_gpt shows it below.
        folder = folder_of(self)
        number, _ = self.sbatch(folder, "srun.sbatch", sys.executable, os.path.join(HERE, "stand_in.py"), folder, wait=False)
        self.wait_for_files(folder, "started.0", "started.1")
        LAB.run("scancel", "--batch", "--signal=USR1", number)
        self.check_requeued(folder, number)

    def test_time_limit_requeues(self):
        folder = folder_of(self)
        number, _ = self.sbatch(folder, "mpirun.sbatch", sys.executable, os.path.join(HERE, "stand_in.py"), folder, wait=False,
                                options=["--time=1", "--signal=B:USR1@50"])
        self.check_requeued(folder, number)

    def test_char_gpt_goes_on_to_the_same_bits(self):
        folder = folder_of(self)
        steps = ["--steps", "600", "--checkpoint-every", "20"]
        whole = tiny_gpt.undisturbed(folder, 2, *steps)
        # With a signal in time, and without one.
        for script, *stop in (("mpirun.sbatch", "scancel", "--batch", "--signal=USR1"), ("srun.sbatch", "scontrol", "requeue")):
            with self.subTest(script):
                folder = folder_of(self)
                number, _ = self.sbatch(folder, script, *tiny_gpt.command(folder, *steps), wait=False)
                self.wait_for_files(folder, "checkpoints/latest")
                LAB.run(*stop, number)
                self.assertLess(tiny_gpt.steps_in(folder), 600, "it ended too soon to be stopped")
                state = self.wait_for_end(number, timeout=200)
                self.assertEqual((state["JobState"], state["Restarts"], state["ExitCode"]), ("COMPLETED", "1", "0:0"), self.log(folder))
                self.assertEqual(tiny_gpt.export_in(folder), whole)
                if "scancel" in stop:
                    self.assertIn("stopped by a signal after step", self.log(folder))
                    self.assertIn("goes back to the queue", self.log(folder))

    def test_preemption_requeues(self):
        """Slurm tells the job's steps by TERM, but not the batch script."""
        steps = ["--steps", "4000", "--checkpoint-every", "4000"]
        whole = tiny_gpt.undisturbed(folder_of(self), 2, *steps)
        for script in SCRIPTS:
            with self.subTest(script):
                folder = folder_of(self)
                number, _ = self.sbatch(folder, script, *tiny_gpt.command(folder, *steps), wait=False)
                self.wait_for_files(folder, "metrics")
                urgent = LAB.run("sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
                self.assertEqual(urgent.returncode, 0, urgent.stderr)
                self.wait_for_files(folder, "checkpoints/latest")
                self.assertLess(tiny_gpt.steps_in(folder), 4000, "it ended too soon to be preempted")
                self.assertEqual(self.wait_for_end(urgent.stdout.strip())["JobState"], "COMPLETED")
                state = self.wait_for_end(number, timeout=200)
                self.assertEqual((state["JobState"], state["Restarts"], state["ExitCode"]), ("COMPLETED", "1", "0:0"), self.log(folder))
                self.assertEqual(tiny_gpt.export_in(folder), whole)
                self.assertIn("stopped by a signal after step", self.log(folder))
                self.assertNotIn("submit it again", self.log(folder))

    def test_cancelled_is_not_requeued(self):
        for script in SCRIPTS:
            with self.subTest(script):
                folder = folder_of(self)
                number, _ = self.sbatch(folder, script, *tiny_gpt.command(folder, "--steps", "100000"), wait=False)
                self.wait_for_files(folder, "metrics")
                LAB.run("scancel", number)
                state = self.wait_for_end(number)
                self.assertEqual((state["JobState"], state["Restarts"]), ("CANCELLED", "0"), self.log(folder))
                time.sleep(10)  # more than Slurm takes to start a job again
                self.assertEqual((self.state(number)["JobState"], self.state(number)["Restarts"]), ("CANCELLED", "0"))

    def test_lost_node_requeues(self):
        steps = ["--steps", "600", "--checkpoint-every", "20", "--timeout", "10"]
        whole = tiny_gpt.undisturbed(folder_of(self), 2, *steps)
        for script in SCRIPTS:
            with self.subTest(script):
                folder = folder_of(self)
                number, _ = self.sbatch(folder, script, *tiny_gpt.command(folder, *steps), wait=False)
                self.wait_for_files(folder, "checkpoints/latest")
                LAB.call("lose", "n2")
                self.assertLess(tiny_gpt.steps_in(folder), 600, "it ended too soon to lose a node")
                time.sleep(20)  # SlurmdTimeout is 10
                LAB.call("back", "n2")
                state = self.wait_for_end(number, timeout=200)
                self.assertEqual((state["JobState"], state["ExitCode"]), ("COMPLETED", "0:0"), self.log(folder))
                self.assertGreaterEqual(int(state["Restarts"]), 1)
                self.assertEqual(tiny_gpt.export_in(folder), whole)

    def test_job_that_may_not_be_requeued_says_so(self):
        folder = folder_of(self)
        _, code = self.sbatch(folder, "mpirun.sbatch", "sh", "-c", "exit 75", options=["--no-requeue"])
        self.assertEqual(code, 75)
        self.assertIn("submit it again", self.log(folder))

    def test_doctor_in_an_allocation(self):
        folder = folder_of(self)
        environment = f"--export=ALL,ZEROSCHED_DOCTOR={job.program('zerosched_doctor')}"
        for checkpoints, expected in ((folder, 0), (LAB.private, 3)):
            command = f"{lab.SOURCE}/launch/doctor --json --sizes 1 --checkpoint-dir {checkpoints}"
            number = self.submit(folder, "--nodes=2", "--ntasks-per-node=1", environment, f"--error={folder}/errors",
                                 "--wrap", command)
            self.assertEqual(self.code_of(number), expected, self.log(folder))
            report = json.loads(self.log(folder))
            self.assertEqual([rank["host"] for rank in report["ranks"]], ["n1", "n2"])
            self.assertEqual(report["problems"], 1 if expected else 0, report["findings"])

    def test_wrong_folder(self):
        folder = folder_of(self)
        _, code = self.sbatch(folder, "mpirun.sbatch", "true", options=["--export=ALL,ZEROSCHED_LAUNCH=/none"])
        self.assertEqual(code, 2)
        self.assertIn("set ZEROSCHED_LAUNCH", self.log(folder))


if __name__ == "__main__":
    REASON = lab.reason_to_skip(lab.Slurm.tools)
    if REASON:
        job.skip(REASON)
    unittest.main(verbosity=2)
