"""Starts session_program as real jobs and checks how they end: exit code, output, time, no process left.

usage: session_test.py PROGRAM MPIEXEC CASE
"""
import os
import signal
import subprocess
import sys
import time

PROGRAM, MPIEXEC, CASE = sys.argv[1:4]
RANKS = 3


def environment(**extra):
    clean = {k: v for k, v in os.environ.items()
             if not k.startswith(("OMPI_COMM", "PMIX_", "PMI_", "SLURM_"))}
    clean.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMP_NUM_THREADS="1")
    clean.update(extra)
    return clean


def members_of(group):
    """Processes that are still alive in the session of the job's leader."""
    alive = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
            with open(f"/proc/{pid}/environ", "rb") as env:
                marked = f"ZEROSCHED_TEST_JOB={group}".encode() in env.read().split(b"\0")
        except OSError:
            continue
        if marked and fields[0] != "Z":
            alive.append(int(pid))
    return alive


class Job:
    """The end of one run: code, stdout, stderr, seconds."""

    def __init__(self, mode, ranks=RANKS, limit=30, mpirun=(), **extra):
        mark = f"{os.getpid()}-{mode}"
        command = [PROGRAM, mode]
        if ranks:
            command = [MPIEXEC, "--oversubscribe", "--bind-to", "none", *mpirun, "-n", str(ranks)] + command
        start = time.monotonic()
        process = subprocess.Popen(command, env=environment(ZEROSCHED_TEST_JOB=mark, **extra), text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        try:
            self.out, self.err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            for pid in members_of(mark):
                os.kill(pid, signal.SIGKILL)
            self.out, self.err = process.communicate()
            fail(f"{mode}: still running after {limit} s", self)
        self.seconds = time.monotonic() - start
        self.code = process.returncode
        # mpirun may report the end a moment before the last rank is gone.
        deadline = time.monotonic() + 5
        while members_of(mark) and time.monotonic() < deadline:
            time.sleep(0.05)
        left = members_of(mark)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        if left:
            fail(f"{mode}: {len(left)} processes left", self)


def fail(why, job):
    sys.exit(f"FAILED {why}\n--- stdout\n{job.out}\n--- stderr\n{job.err}")


def check(job, condition, why):
    if not condition:
        fail(f"{why} (exit code {job.code})", job)


def expect(job, code, seconds=10, err=(), out=(), absent=()):
    check(job, job.code == code, f"expected exit code {code}")
    check(job, job.seconds < seconds, f"took {job.seconds:.1f} s, more than {seconds} s")
    for part in err:
        check(job, job.err.count(part) == 1, f"stderr should have once: {part!r}, has it {job.err.count(part)} times")
    for part in out:
        check(job, part in job.out, f"stdout should have {part!r}")
    for part in absent:
        check(job, part not in job.err, f"stderr should not have {part!r}")


def stops(rank, message):
    return f"zerosched: rank {rank} stops: {message}\n"


def everyone(origin, own, note=None):
    """The origin says what happened to it, the others what the origin told them."""
    return [stops(r, own if r == origin else note or f"rank {origin}: {own}") for r in range(RANKS)]


LAST = RANKS - 1


def auto_self():
    expect(Job("all_reduce", ranks=0), 0, out=["sum 1 of 1"])
    expect(Job("all_reduce", ranks=0, SLURM_JOB_ID="7", SLURM_NTASKS="4"), 0, out=["sum 1 of 1"])
    expect(Job("all_reduce"), 0, out=[f"sum {RANKS} of {RANKS}"])
    expect(Job("all_reduce", ranks=1), 0, out=["sum 1 of 1"])


def self_under_mpirun():
    expect(Job("self"), 0, out=["sum 1 of 1"])


def two_sessions():
    expect(Job("two_sessions", ranks=2), 0, out=["caught: session: there is one already", "sum 2 of 2"])


def bad_options():
    expect(Job("bad_options", ranks=2), 0,
           out=['unknown backend "gloo"', "timeout is 0", "must be at::kCPU or a CUDA device", "sum 2 of 2"])


def without_gpu():
    """What needs a GPU says so on every rank, and the job ends in good order."""
    for ranks in (0, 2):
        job = Job("nccl", ranks=ranks, CUDA_VISIBLE_DEVICES="")
        expect(job, 0, out=['caught: rank 0: session: the backend "nccl" needs a GPU, but '])
        check(job, job.out.count("caught: ") == max(ranks, 1), "every rank should say so")
        job = Job("cuda", ranks=ranks, CUDA_VISIBLE_DEVICES="")
        expect(job, 0, out=["caught: rank 0: session: the device is cuda:0, but "])
        check(job, job.out.count("caught: ") == max(ranks, 1), "every rank should say so")
        expect(Job("all_reduce", ranks=ranks, CUDA_VISIBLE_DEVICES=""), 0, out=[f"sum {max(ranks, 1)} of"])


def uncaught():
    expect(Job("uncaught"), 70, err=everyone(LAST, "no such file: data.bin"), absent=["terminate called"])


def unwinding():
    job = Job("unwinding")
    expect(job, 70, err=[stops(LAST, "an exception left the scope of its Session")],
           out=["caught: the model is broken"])
    for rank in range(LAST):
        expect(job, 70, err=[stops(rank, f"rank {LAST}: an exception left the scope of its Session")])


def caught_outside():
    # A world of one has nobody to tell: the handler decides the exit code.
    expect(Job("unwinding", ranks=0), 1, out=["caught: the model is broken"], absent=["stops"])


def poisoned():
    note = f"rank {LAST}: nan in the loss"
    expect(Job("poisoned"), 70, err=everyone(LAST, note, note))


def abort():
    expect(Job("abort"), 75, err=everyone(LAST, "enough"))


def stopped():  # the session itself has agreed on devices in three collectives
    job = Job("stopped", limit=40)
    expect(job, 70, seconds=15)
    for rank in range(LAST):
        check(job, stops(rank, f"mpi: gave up all_reduce #4 'loss' after 2 s; rank {LAST} does not respond "
                               "(stopped, dead or cut off)") in job.err, f"rank {rank} should name the stopped rank")


def killed():
    job = Job("killed")
    check(job, job.code != 0, "a killed rank must not be a success")
    check(job, job.seconds < 10, "took too long")


def late_note():
    expect(Job("late_note"), 70, err=everyone(LAST, "failed after the others were done"))


def srun_without_pmix():
    job = Job("all_reduce", ranks=0, SLURM_STEP_ID="0", SLURM_STEP_NUM_TASKS="4", SLURM_PROCID="2")
    check(job, job.code != 0, "should fail")
    check(job, "srun --mpi=pmix" in job.err and "mpirun" in job.err and '"self"' in job.err, "should say what to do")
    expect(Job("self", ranks=0, SLURM_STEP_ID="0", SLURM_STEP_NUM_TASKS="4"), 0, out=["sum 1 of 1"])
    expect(Job("all_reduce", ranks=0, SLURM_STEP_ID="0", SLURM_STEP_NUM_TASKS="1"), 0, out=["sum 1 of 1"])


def quiet_exit():
    job = Job("quiet_exit")
    check(job, job.code != 0 and job.seconds < 10, "the job must end with an error")


def terminate_alone():
    expect(Job("uncaught", ranks=0), 70, err=[stops(0, "no such file: data.bin")])


def slow_rank():
    expect(Job("slow_rank"), 0, seconds=15)


def gave_up_nccl(job):
    for rank in range(LAST):
        check(job, stops(rank, "nccl: gave up all_reduce #2 'gradients' (bucket 0, step 1) after 2 s; "
                               f"rank {LAST} does not respond (stopped, dead or cut off)") in job.err,
              f"rank {rank} should name the rank that is gone")
    check(job, "went on" not in job.out, "nobody may go on")


def nccl_stopped():
    job = Job("stopped", limit=40)
    expect(job, 70, seconds=25)
    gave_up_nccl(job)


def nccl_killed():
    # As it is: mpirun ends the job.
    job = Job("killed")
    check(job, job.code != 0 and job.seconds < 20, "a killed rank must not be a success")
    check(job, "went on" not in job.out, "nobody may go on")
    # Where the launcher lets the others live (its exit code is then 0, whatever theirs), they find out.
    gave_up_nccl(Job("killed", limit=40, mpirun=["--enable-recovery"]))


globals()[CASE]()
print(f"{CASE}: passed")
