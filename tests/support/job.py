"""Runs example programs as jobs of several ranks, each with a time limit, and keeps what they print."""
import collections
import json
import os
import signal
import subprocess
import sys

Result = collections.namedtuple("Result", "code out err")


def program(name):
    """Path of an example program; CTest sets ZEROSCHED_BIN to the folder they are in."""
    return os.path.join(os.environ["ZEROSCHED_BIN"], name)


def mpirun(ranks):
    mpiexec = os.environ.get("ZEROSCHED_MPIEXEC", "mpirun")
    return [mpiexec, "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]


def run(command, timeout=120):
    environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)  # mpirun passes it on to the ranks, then kills them
        try:
            out, err = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
        raise AssertionError(f"not finished after {timeout} s: {command}\n{out}\n{err}") from None
    return Result(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))


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
    """Ends the test program as CTest's SKIP_RETURN_CODE says."""
    print(f"SKIPPED: {reason}", flush=True)
    sys.exit(77)
