"""Starts training_program as real jobs in which one rank fails, and checks how all of them end.

usage: training_test.py PROGRAM CASE
"""
import re
import sys
import time

import job

PROGRAM, CASE = sys.argv[1:3]
RANKS = 3
TIMEOUT = 3.0  # of the session, in the cases that wait for it


class Job:
    def __init__(self, fault, timeout=60.0, *more, limit=40):
        command = [*job.mpirun(RANKS), PROGRAM, fault, str(timeout), *more]
        start = time.monotonic()
        self.code, self.out, self.err = job.run(command, limit)
        self.seconds = time.monotonic() - start

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
    whole = Job("none")
    whole.check(whole.code == 0 and f"trained {RANKS} ranks" in whole.out, "training without a fault")


def throws(fault, text):
    # Nobody catches it: the terminate handler tells the others.
    Job(fault).expect(20, [f"rank 1: {text}", text, f"rank 1: {text}"])
    # main() catches it: the optimizer and the session go while it unwinds.
    caught = Job(fault, 60.0, "caught")
    caught.expect(20, ["rank 1: an exception", "an exception", "rank 1: an exception"])
    caught.check(text in caught.err, "the program reports its exception itself")


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


def stops(fault, *more):
    what = r"(reduce_scatter #\d+ 'gradients'|all_gather #\d+ 'parameters') \(bucket \d+, step 3\)"
    text = f"gave up {what} after 3 s; rank 1 does not respond"
    Job(fault, TIMEOUT, *more).expect(TIMEOUT + 12, [text, None, text])


def stop_in_backward():
    stops("stop_in_backward")


def stop_before_step():
    stops("stop_before_step")


def stop_in_backward_flat():
    stops("stop_in_backward", "flat")


def kill_in_backward():
    Job("kill_in_backward").expect(20, [None] * RANKS, code=None)


def kill_before_step():
    Job("kill_before_step").expect(20, [None] * RANKS, code=None)


def kill_in_backward_flat():
    Job("kill_in_backward", 60.0, "flat").expect(20, [None] * RANKS, code=None)


def exit_in_backward():
    Job("exit_in_backward").expect(20, [None] * RANKS, code=None)


WHO = r"AdamWScheduleFree #1 \(of 'layer0' and 4 more\)"
LEFT = rf"rank 1 has ended this optimizer, {WHO}, after 3 steps; every rank must make the same number of steps, or use join\(\)"


def leaves_early():
    """With the default timeout of a minute here: nobody waits for it."""
    Job("leaves_early").expect(20, [rf"mpi: \w+ #\d+ '[\w ]+' .*: {LEFT}"] * RANKS)


def leaves_before_eval():
    Job("leaves_before_eval").expect(20, [rf"mpi: all_reduce #\d+ 'eval\(\)': {LEFT}"] * RANKS)


def session_ends_early():
    """Its optimizer lives, but no step of it can come any more."""
    Job("session_ends_early").expect(20, [r"mpi: .*: rank 1 has come to the end of its Session; every rank must"] * RANKS)


def other_order():
    """Nobody is at fault: the message names both optimizers."""
    first, second = r"AdamWScheduleFree #1 \(of 'layer0' and 1 more\)", r"AdamWScheduleFree #2 \(of 'layer2' and 2 more\)"
    whole = Job("other_order", TIMEOUT)
    whole.expect(20, [None] * RANKS)
    said = re.findall(r"zerosched: rank \d stops: (.*)", whole.err)
    for text in said:
        one, other = (first, second) if re.match(f"mpi: {first}", text) else (second, first)
        whole.check(re.search(rf"mpi: {one}: gave up \w+ #\d+ .* after 3 s; .*has not arrived .*but answers: it (?:waits in|gave up) \w+ #\d+ "
                              rf".* of {other}", text), "both optimizers should be named")
        whole.check("respond" not in text and "must step its optimizers" in text, "nobody is dead")
    whole.check(said, "ranks should say why")


def busy():
    text = r"gave up .* after 3 s; rank 1 has not arrived .*, but answers: it is busy outside of the library. If that may take " \
        "so long, set a longer SessionOptions::timeout"
    Job("busy", TIMEOUT).expect(20, [text, None, text])


def caught(fault, text):
    whole = Job(fault)
    whole.check(whole.code == 0 and f"trained {RANKS} ranks" in whole.out, "the job goes on and ends well")
    whole.check(re.search(f"caught: .*{text}", whole.out) and "stops" not in whole.err, "all ranks should catch it")


def caught_load():
    caught("caught_load", "/no/such/checkpoint/manifest.json")


def caught_trial():
    caught("caught_trial", "a trial has failed")


def forks():
    whole = Job("forks")
    whole.check(whole.code == 0 and f"trained {RANKS} ranks" in whole.out, "a child's end is not the job's")


CASES = [none, throw_in_forward, throw_in_hook, throw_before_step, throw_in_evaluation, second_backward,
         edited_parameter, different_model, zero_grad, stop_in_backward, stop_before_step, stop_in_backward_flat,
         kill_in_backward, kill_before_step, kill_in_backward_flat, exit_in_backward, leaves_early, leaves_before_eval,
         session_ends_early, other_order, busy, caught_load, caught_trial, forks]

{case.__name__: case for case in CASES}[CASE]()
