"""A training job that is killed, stopped and asked to end at random moments goes on from its last checkpoint each time,
and ends with the very bits of a job that nobody disturbed.

usage: soak_test.py FAULTS [SEED]
"""
import os
import random
import re
import signal
import sys
import tempfile
import time

import job
from processes import kill

FAULTS = int(sys.argv[1])
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else 1
RANKS, STEPS = 2, 4000
HANG_TIMEOUT = 3  # seconds, what char_gpt is told
# What a fault may lead to: the exit code of the job.
KILLED, STOPPED, REQUEUE, TERMINATED = "a rank killed", "a rank stopped", "SIGUSR1 to mpirun", "SIGTERM to a rank"
CODES = {KILLED: lambda code: code != 0, STOPPED: lambda code: code == 70, REQUEUE: lambda code: code == 75,
         TERMINATED: lambda code: code == 75}
# Before a rank listens a signal ends it.
EARLY_CODES = {**CODES, REQUEUE: lambda code: code in (75, 128 + signal.SIGUSR1, -signal.SIGUSR1),
               TERMINATED: lambda code: code in (75, 128 + signal.SIGTERM)}
START = 1.5  # seconds in which a job joins and loads its checkpoint here


def command(folder):
    return [*job.mpirun(RANKS), job.program("char_gpt"), "--synthetic", "--dim", "32", "--layers", "1", "--heads", "2",
            "--seq", "16", "--batch", "2", "--dropout", "0.1", "--steps", str(STEPS), "--checkpoint-dir",
            f"{folder}/checkpoints", "--checkpoint-every", "10", "--keep-checkpoints", "3", "--resume", "--metrics",
            f"{folder}/metrics", "--timeout", str(HANG_TIMEOUT), "--export", f"{folder}/model.safetensors"]


def wait_for_moment(run, metrics, number, generator):
    """Most often some steps after the start, but in every fourth job of a set while it starts, and in the last one when
    it is about to end. Returns whether the job may not have begun yet."""
    if number % 4 == 0:
        time.sleep(generator.uniform(0, START))
        return True
    last = number == FAULTS - 1
    enough = STEPS if last else job.lines_of(metrics) + generator.randint(1, 30)
    run.wait_for(lambda: job.lines_of(metrics) >= enough, f"step {enough}", seconds=200)
    time.sleep(generator.uniform(0, 0.05))  # not always right after a step
    return False


def strike(run, fault, rank):
    if fault == REQUEUE:
        run.process.send_signal(signal.SIGUSR1)
        return
    run.wait_for(lambda: rank in run.ranks(), f"rank {rank}")
    number = {KILLED: signal.SIGKILL, STOPPED: signal.SIGSTOP, TERMINATED: signal.SIGTERM}[fault]
    kill([run.ranks()[rank]], number)


def disturbed(folder, generator):
    faults = dict.fromkeys(CODES, 0)
    for number in range(FAULTS):
        run = job.Job(command(folder))
        early = wait_for_moment(run, f"{folder}/metrics", number, generator)
        # Most often the worst; a stopped rank costs its timeout.
        fault = generator.choices((KILLED, STOPPED, REQUEUE, TERMINATED), (6, 1, 2, 1))[0]
        rank = generator.randrange(RANKS)
        strike(run, fault, rank)
        result = run.end(60)
        last = number == FAULTS - 1  # which may have ended before it was struck
        if not (EARLY_CODES if early else CODES)[fault](result.code) and not (last and result.code == 0):
            raise AssertionError(f"{fault}: {result}")
        if fault == STOPPED and not (last and result.code == 0):
            message = rf"rank {rank} (does not respond|has not come)" if early else \
                rf"gave up \w+ #\d+ '.*' .*after {HANG_TIMEOUT} s; rank {rank} does not respond"
            if not re.search(message, result.err):
                raise AssertionError(f"nobody says {message!r}: {result}")
        faults[fault] += 1
    result = job.run(command(folder), timeout=300)
    if result.code != 0:
        raise AssertionError(f"the undisturbed end of the job: {result}")
    return faults


def main():
    with tempfile.TemporaryDirectory(prefix="zerosched-test-") as folder:
        for name in ("disturbed", "undisturbed"):
            os.mkdir(f"{folder}/{name}")
        faults = disturbed(f"{folder}/disturbed", random.Random(SEED))
        result = job.run(command(f"{folder}/undisturbed"), timeout=300)
        if result.code != 0:
            raise AssertionError(f"the undisturbed job failed: {result}")
        exports = []
        for name in ("disturbed", "undisturbed"):
            with open(f"{folder}/{name}/model.safetensors", "rb") as file:
                exports.append(file.read())
        if exports[0] != exports[1]:
            sys.exit("FAILED: the disturbed job has trained something else")
        print(f"{sum(faults.values())} faults ({', '.join(f'{count} x {name}' for name, count in faults.items())}), "
              "the same bits")


main()
