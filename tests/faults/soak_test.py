"""A training job that is killed, stopped and asked to end at random moments goes on from its last checkpoint each time,
and ends with the very bits of a job that nobody disturbed.

usage: soak_test.py FAULTS [SEED]
"""
import os
import random
import signal
import subprocess
import sys
import tempfile
import time

import job
from processes import kill, marked_processes

FAULTS = int(sys.argv[1])
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else 1
RANKS, STEPS = 2, 4000
HANG_TIMEOUT = 3  # seconds, what char_gpt is told
# What a fault may lead to: the exit code of the job.
KILLED, STOPPED, REQUEUE = "a rank killed", "a rank stopped", "SIGUSR1 to mpirun"
CODES = {KILLED: lambda code: code != 0, STOPPED: lambda code: code == 70, REQUEUE: lambda code: code == 75}


def command(folder):
    return [*job.mpirun(RANKS), job.program("char_gpt"), "--synthetic", "--dim", "32", "--layers", "1", "--heads", "2",
            "--seq", "16", "--batch", "2", "--dropout", "0.1", "--steps", str(STEPS), "--checkpoint-dir",
            f"{folder}/checkpoints", "--checkpoint-every", "10", "--keep-checkpoints", "3", "--resume", "--metrics",
            f"{folder}/metrics", "--timeout", str(HANG_TIMEOUT), "--export", f"{folder}/model.safetensors"]


class Run:
    """One start of the job."""

    def __init__(self, folder, number):
        self.mark = f"soak-{os.getpid()}-{number}"
        self.metrics = f"{folder}/metrics"
        environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                           ZEROSCHED_TEST_JOB=self.mark)
        self.log = open(f"{folder}/log-{number}", "w+", encoding="utf-8")
        self.process = subprocess.Popen(command(folder), env=environment, stdout=self.log, stderr=self.log)

    def fail(self, why):
        kill(marked_processes(self.mark))
        self.log.seek(0)
        sys.exit(f"FAILED: {why}\n{self.log.read()}")

    def wait_for_steps(self, steps):
        """False if the job ends before."""
        begin, deadline = job.lines_of(self.metrics), time.monotonic() + 60
        while job.lines_of(self.metrics) < begin + steps:
            if self.process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                self.fail(f"no {steps} steps within 60 s")
            time.sleep(0.01)
        return True

    def ranks(self):
        # The name of a process that becomes char_gpt is not char_gpt's from the start.
        found = []
        for pid in marked_processes(self.mark):
            with open(f"/proc/{pid}/comm", encoding="utf-8") as comm:
                if comm.read().strip() == "char_gpt":
                    found.append(pid)
        return found

    def end(self, seconds):
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.fail(f"still running after {seconds} s")
        deadline = time.monotonic() + 5
        while marked_processes(self.mark) and time.monotonic() < deadline:
            time.sleep(0.05)
        if marked_processes(self.mark):
            self.fail("processes are left")
        self.log.close()
        return code


def disturbed(folder, generator):
    faults = {KILLED: 0, STOPPED: 0, REQUEUE: 0}
    for number in range(FAULTS * 3):
        run = Run(folder, number)
        if sum(faults.values()) == FAULTS:
            code = run.end(300)
            if code != 0:
                run.fail(f"the undisturbed end of the job has exit code {code}")
            return faults
        if not run.wait_for_steps(generator.randint(1, 30)):
            run.fail("the job ended by itself")
        time.sleep(generator.uniform(0, 0.05))  # not always right after a step
        # Most often the worst; a stopped rank costs its timeout.
        fault = generator.choices((KILLED, STOPPED, REQUEUE), (6, 1, 2))[0]
        if fault == REQUEUE:
            run.process.send_signal(signal.SIGUSR1)
        else:
            kill([generator.choice(run.ranks())], signal.SIGKILL if fault == KILLED else signal.SIGSTOP)
        code = run.end(60)
        if not CODES[fault](code):
            run.fail(f"{fault}: exit code {code}")
        faults[fault] += 1
    return sys.exit("FAILED: the job never came to its end")


def main():
    with tempfile.TemporaryDirectory(prefix="zerosched-test-") as folder:
        for name in ("disturbed", "undisturbed"):
            os.mkdir(f"{folder}/{name}")
        faults = disturbed(f"{folder}/disturbed", random.Random(SEED))
        run = Run(f"{folder}/undisturbed", 0)
        if run.end(300) != 0:
            run.fail("the undisturbed job failed")
        exports = []
        for name in ("disturbed", "undisturbed"):
            with open(f"{folder}/{name}/model.safetensors", "rb") as file:
                exports.append(file.read())
        if exports[0] != exports[1]:
            sys.exit("FAILED: the disturbed job has trained something else")
        print(f"{sum(faults.values())} faults ({', '.join(f'{count} x {name}' for name, count in faults.items())}), "
              "the same bits")


main()
