"""Runs example programs as jobs of several ranks, each with a time limit, and keeps what they print."""
import collections
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import unittest

from processes import environment_of, kill, left_after, marked_processes, name_of

SKIPPED = 77  # SKIP_RETURN_CODE in tests/CMakeLists.txt
MPIEXEC = os.environ.get("ZEROSCHED_MPIEXEC", "mpirun")

Result = collections.namedtuple("Result", "code out err")


def program(name):
    """Path of an example program; CTest sets ZEROSCHED_BIN to the folder they are in."""
    return os.path.join(os.environ["ZEROSCHED_BIN"], name)


@functools.lru_cache
def is_open_mpi():
    """Whether mpirun is Open MPI's; MPICH's has other options."""
    said = subprocess.run([MPIEXEC, "--version"], capture_output=True, text=True).stdout
    return "Open MPI" in said or "OpenRTE" in said


def mpirun(ranks, *options):
    placing = ["--oversubscribe", "--bind-to", "none"] if is_open_mpi() else []
    return [MPIEXEC, *placing, *options, "-n", str(ranks)]


class Job:
    """One start of a job on this machine, marked so that none of its processes gets lost."""

    numbers = itertools.count()

    def __init__(self, command, environment=None, cwd=None):
        self.command = command
        self.mark = f"{os.getpid()}-{next(self.numbers)}"
        environment = dict(environment or os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                           ZEROSCHED_TEST_JOB=self.mark)
        self.out, self.err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # no pipes, which fill up
        self.process = subprocess.Popen(command, env=environment, stdout=self.out, stderr=self.err,
                                        stdin=subprocess.DEVNULL, cwd=cwd)

    def printed(self):
        texts = []
        for file in (self.out, self.err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return texts

    def fail(self, why):
        """Ends the job and raises AssertionError with all that it printed."""
        kill(marked_processes(self.mark))
        self.process.wait()
        raise AssertionError("\n".join([f"{why}: {self.command}", *self.printed()]))

    def wait_for(self, condition, what, seconds=60):
        """Returns once `condition()` is true while the job runs."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                self.fail(f"ended with exit code {self.process.returncode} before {what}")
            if time.monotonic() > deadline:
                self.fail(f"after {seconds} s still waiting for {what}")
            time.sleep(0.01)

    def ranks(self):
        """Processes of the job by rank."""
        found = {}
        for pid in marked_processes(self.mark):
            environment = environment_of(pid)
            rank = environment.get("OMPI_COMM_WORLD_RANK", environment.get("PMI_RANK"))
            if rank is not None:
                found[int(rank)] = pid
        return found

    def end(self, timeout=120, leaving=5):
        """The Result of the job, which must end by itself; `leaving` seconds later no process may be left."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.fail(f"not finished after {timeout} s")
        if left := left_after(self.mark, leaving):  # mpirun may end a moment before the last rank
            self.fail(f"left are {[name_of(pid) for pid in left]}")
        result = Result(self.process.returncode, *self.printed())
        self.out.close()
        self.err.close()
        return result


def run(command, timeout=120, environment=None, cwd=None):
    return Job(command, environment, cwd).end(timeout)


def train(command, timeout=120):
    """Runs a trainer with --json that must succeed; returns the object on its last line, and the Result."""
    result = run([*command, "--json"], timeout)
    if result.code != 0:
        raise AssertionError(f"exit code {result.code}: {command}\n{result.out}\n{result.err}")
    return json.loads(result.out.rstrip("\n").split("\n")[-1]), result


def lines_of(path):
    """How many whole lines a file has that a job is writing, 0 if there is none yet."""
    if not os.path.exists(path):
        return 0
    with open(path, encoding="utf-8") as file:
        return file.read().count("\n")


def skip(reason):
    """Ends the test program as CTest's SKIP_RETURN_CODE says. Not for use in a case of unittest, to which it is an error:
    there it is self.skipTest(), under main()."""
    print(f"SKIPPED: {reason}", flush=True)
    sys.exit(SKIPPED)


def main(argv=None):
    """unittest.main(), but skipped if nothing fails and a case is skipped."""
    result = unittest.main(argv=argv, verbosity=2, exit=False).result
    if not result.wasSuccessful():
        sys.exit(1)
    if result.skipped:
        skip(result.skipped[0][1])
