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
KILLED, STOPPED, REQUEUE = "a rank killed", "a rank stopped", "SIGUSR1 to mpirun"
CODES = {KILLED: lambda code: code != 0, STOPPED: lambda code: code == 70, REQUEUE: lambda code: code == 75}


def command(folder):
    return [*job.mpirun(RANKS), job.program("char_gpt"), "--synthetic", "--dim", "32", "--layers", "1", "--heads", "2",
            "--seq", "16", "--batch", "2", "--dropout", "0.1", "--steps", str(STEPS), "--checkpoint-dir",
            f"{folder}/checkpoints", "--checkpoint-every", "10", "--keep-checkpoints", "3", "--resume", "--metrics",
            f"{folder}/metrics", "--timeout", str(HANG_TIMEOUT), "--export", f"{folder}/model.safetensors"]


def disturbed(folder, generator):
    faults = {KILLED: 0, STOPPED: 0, REQUEUE: 0}
    for _ in range(FAULTS * 3):
        run = job.Job(command(folder))
        if sum(faults.values()) == FAULTS:
            result = run.end(300)
            if result.code != 0:
                raise AssertionError(f"the undisturbed end of the job: {result}")
            return faults
        metrics = f"{folder}/metrics"
        enough = job.lines_of(metrics) + generator.randint(1, 30)
        run.wait_for(lambda: job.lines_of(metrics) >= enough, f"step {enough}")
        time.sleep(generator.uniform(0, 0.05))  # not always right after a step
        # Most often the worst; a stopped rank costs its timeout.
        fault = generator.choices((KILLED, STOPPED, REQUEUE), (6, 1, 2))[0]
        if fault == REQUEUE:
            run.process.send_signal(signal.SIGUSR1)
        else:
            rank = generator.randrange(RANKS)
            kill([run.ranks()[rank]], signal.SIGKILL if fault == KILLED else signal.SIGSTOP)
        result = run.end(60)
        if not CODES[fault](result.code):
            raise AssertionError(f"{fault}: {result}")
        if fault == STOPPED:
            message = rf"gave up \w+ #\d+ '.*' .*after {HANG_TIMEOUT} s; rank {rank} does not respond"
            if not re.search(message, result.err):
                raise AssertionError(f"nobody says {message!r}: {result}")
        faults[fault] += 1
    return sys.exit("FAILED: the job never came to its end")


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
