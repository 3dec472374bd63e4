"""Starts training_program as real jobs in which one rank fails, and checks how all of them end.

usage: training_test.py PROGRAM MPIEXEC CASE
"""
import os
import re
import subprocess
import sys
import time

from processes import kill, marked_processes

PROGRAM, MPIEXEC, CASE = sys.argv[1:4]
RANKS = 3
TIMEOUT = 3.0  # of the session, in the cases that wait for it


class Job:
    def __init__(self, fault, timeout=60.0, *more, limit=40):
        mark = f"{os.getpid()}-{fault}"
        env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_COMM", "PMIX_", "PMI_", "SLURM_"))}
        env.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMP_NUM_THREADS="1",
                   ZEROSCHED_TEST_JOB=mark)
        command = [MPIEXEC, "--oversubscribe", "--bind-to", "none", "-n", str(RANKS), PROGRAM, fault, str(timeout), *more]
        start = time.monotonic()
        process = subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            self.out, self.err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            kill(marked_processes(mark))
            self.out, self.err = process.communicate()
            self.fail(f"still running after {limit} s")
        self.seconds = time.monotonic() - start
        self.code = process.returncode
        deadline = time.monotonic() + 5  # mpirun may end a moment before the last rank
        while marked_processes(mark) and time.monotonic() < deadline:
            time.sleep(0.05)
        left = marked_processes(mark)
        kill(left)
        if left:
            self.fail(f"{len(left)} processes are left")

    def fail(self, why):
        sys.exit(f"FAILED: {why}\n--- stdout\n{self.out}\n--- stderr\n{self.err}")

    def check(self, condition, why):
        if not condition:
            self.fail(f"{why} (exit code {self.code}, {self.seconds:.1f} s)")

    def expect(self, seconds, texts, code=70):
        """`texts`: per rank, a pattern of what it says; None: nothing is expected of that rank."""
        self.check(self.code == code if code is not None else self.code != 0, f"expected exit code {code}")
        self.check(self.seconds < seconds, f"took longer than {seconds} s")
        for rank, text in enumerate(texts):
            if text is not None:
                pattern = f"zerosched: rank {rank} stops: .*{text}"
                self.check(re.search(pattern, self.err), f"no {pattern!r} on stderr")


def none():
    job = Job("none")
    job.check(job.code == 0 and f"trained {RANKS} ranks" in job.out, "training without a fault")


def throws(fault, text):
    # Nobody catches it: the terminate handler tells the others.
    Job(fault).expect(20, [f"rank 1: {text}", text, f"rank 1: {text}"])
    # main() catches it: the optimizer and the session go while it unwinds.
    job = Job(fault, 60.0, "caught")
    job.expect(20, ["rank 1: an exception", "an exception", "rank 1: an exception"])
    job.check(text in job.err, "the program reports its exception itself")


def throw_in_forward():
    throws("throw_in_forward", "the forward pass failed")


def throw_in_hook():
    throws("throw_in_hook", "the user's hook failed")


def throw_before_step():
    throws("throw_before_step", "the metrics disk is full")


def throw_in_evaluation():
    throws("throw_in_evaluation", "the evaluation failed")


def second_backward():
    text = "rank 1: the gradient of parameter 'layer4' arrived twice in one step"
    Job("second_backward").expect(20, [text] * RANKS)


def edited_parameter():
    Job("edited_parameter").expect(20, ["rank 1: parameter 'layer1' was written"] * RANKS)


def different_model():
    text = r"rank 0 has parameter 'layer3' \[100\].*rank 1 has parameter 'layer3' \[99\]"
    Job("different_model").expect(20, [text] * RANKS)


def zero_grad():
    Job("zero_grad", TIMEOUT).expect(20, ["zero_grad"] * RANKS)


def stop_in_backward():
    Job("stop_in_backward", TIMEOUT).expect(TIMEOUT + 12, ["rank 1 does not respond", None, "rank 1 does not respond"])


def stop_before_step():
    Job("stop_before_step", TIMEOUT).expect(TIMEOUT + 12, ["rank 1 does not respond", None, "rank 1 does not respond"])


def kill_in_backward():
    Job("kill_in_backward").expect(20, [None] * RANKS, code=None)


def kill_before_step():
    Job("kill_before_step").expect(20, [None] * RANKS, code=None)


def exit_in_backward():
    Job("exit_in_backward").expect(20, [None] * RANKS, code=None)


CASES = [none, throw_in_forward, throw_in_hook, throw_before_step, throw_in_evaluation, second_backward,
         edited_parameter, different_model, zero_grad, stop_in_backward, stop_before_step, kill_in_backward,
         kill_before_step, exit_in_backward]

{case.__name__: case for case in CASES}[CASE]()
