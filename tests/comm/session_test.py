"""Starts session_program as real jobs and checks how they end: exit code, output, time, no process left.

usage: session_test.py PROGRAM CASE
"""
import os
import sys
import time

import job

PROGRAM, CASE = sys.argv[1:3]
RANKS = 3


def environment(**extra):
    """The caller's, without what belongs to a job that the caller may be in."""
    clean = {name: value for name, value in os.environ.items()
             if not name.startswith(("OMPI_COMM", "PMIX_", "PMI_", "SLURM_"))}
    return {**clean, "OMP_NUM_THREADS": "1", **extra}


class Run:
    """The end of one job: code, stdout, stderr, seconds."""

    def __init__(self, mode, ranks=RANKS, limit=30, mpirun=(), **extra):
        launcher = job.mpirun(ranks, *mpirun) if ranks else []
        start = time.monotonic()
        self.code, self.out, self.err = job.run([*launcher, PROGRAM, mode], limit, environment(**extra))
        self.seconds = time.monotonic() - start


def check(run, condition, why):
    if not condition:
        sys.exit(f"FAILED {why} (exit code {run.code})\n--- stdout\n{run.out}\n--- stderr\n{run.err}")


def expect(run, code, seconds=10, err=(), out=(), absent=()):
    check(run, run.code == code, f"expected exit code {code}")
    check(run, run.seconds < seconds, f"took {run.seconds:.1f} s, more than {seconds} s")
    for part in err:
        check(run, run.err.count(part) == 1, f"stderr should have once: {part!r}, has it {run.err.count(part)} times")
    for part in out:
        check(run, part in run.out, f"stdout should have {part!r}")
    for part in absent:
        check(run, part not in run.err, f"stderr should not have {part!r}")


def begins(rank, message):
    return f"zerosched: rank {rank} stops: {message}"


def stops(rank, message):
    return begins(rank, message) + "\n"


def everyone(origin, own, note=None):
    """The origin says what happened to it, the others what the origin told them."""
    return [stops(r, own if r == origin else note or f"rank {origin}: {own}") for r in range(RANKS)]


LAST = RANKS - 1


def auto_self():
    expect(Run("all_reduce", ranks=0), 0, out=["sum 1 of 1"])
    expect(Run("all_reduce", ranks=0, SLURM_JOB_ID="7", SLURM_NTASKS="4"), 0, out=["sum 1 of 1"])
    expect(Run("all_reduce"), 0, out=[f"sum {RANKS} of {RANKS}"])
    expect(Run("all_reduce", ranks=1), 0, out=["sum 1 of 1"])


def self_under_mpirun():
    expect(Run("self"), 0, out=["sum 1 of 1"])


def two_sessions():
    expect(Run("two_sessions", ranks=2), 0, out=["caught: session: there is one already", "sum 2 of 2"])


def bad_options():
    expect(Run("bad_options", ranks=2), 0,
           out=['unknown backend "gloo"', "timeout is 0", "abort timeout is -1", "must be at::kCPU or a CUDA device", "sum 2 of 2"])


def without_gpu():
    """What needs a GPU says so on every rank, and the run ends in good order."""
    for ranks in (0, 2):
        run = Run("nccl", ranks=ranks, CUDA_VISIBLE_DEVICES="")
        expect(run, 0, out=['caught: rank 0: session: the backend "nccl" needs a GPU, but '])
        check(run, run.out.count("caught: ") == max(ranks, 1), "every rank should say so")
        run = Run("cuda", ranks=ranks, CUDA_VISIBLE_DEVICES="")
        expect(run, 0, out=["caught: rank 0: session: the device is cuda:0, but "])
        check(run, run.out.count("caught: ") == max(ranks, 1), "every rank should say so")
        expect(Run("all_reduce", ranks=ranks, CUDA_VISIBLE_DEVICES=""), 0, out=[f"sum {max(ranks, 1)} of"])


def uncaught():
    expect(Run("uncaught"), 70, err=everyone(LAST, "no such file: data.bin"), absent=["terminate called"])


def unwinding():
    run = Run("unwinding")
    expect(run, 70, err=[stops(LAST, "an exception left the scope of its Session")],
           out=["caught: the model is broken"])
    for rank in range(LAST):
        expect(run, 70, err=[stops(rank, f"rank {LAST}: an exception left the scope of its Session")])


def caught_outside():
    # A world of one has nobody to tell: the handler decides the exit code.
    expect(Run("unwinding", ranks=0), 1, out=["caught: the model is broken"], absent=["stops"])


def poisoned():
    note = f"rank {LAST}: nan in the loss"
    expect(Run("poisoned"), 70, err=everyone(LAST, note, note))


def abort():
    expect(Run("abort"), 75, err=everyone(LAST, "enough"))


def stopped():  # the session itself has agreed on devices in three collectives
    run = Run("stopped", limit=40)
    expect(run, 70, seconds=15)
    for rank in range(LAST):
        check(run, stops(rank, f"mpi: gave up all_reduce #4 'loss' after 2 s; rank {LAST} does not respond "
                               "(stopped, dead or cut off)") in run.err, f"rank {rank} should name the stopped rank")


def killed():
    run = Run("killed")
    check(run, run.code != 0, "a killed rank must not be a success")
    check(run, run.seconds < 10, "took too long")


def expect_given_up(run, messages, seconds, launcher=70):
    """No rank goes on or returns to a handler; those that are there say why."""
    expect(run, launcher, seconds=seconds)
    for message in messages:
        check(run, message in run.err, f"stderr should have {message!r}")
    check(run, "caught" not in run.out and "sum" not in run.out, "nobody may go on")


def stopped_before():
    # Whoever is first has mpirun kill the others, which may not come to speak.
    run = Run("stopped_before")
    expect_given_up(run, ["session: MPI_Init_thread has not ended after 2 s", "set a longer SessionOptions::timeout"], 10)
    check(run, any(begins(rank, "session: MPI_Init") in run.err for rank in range(LAST)), "a rank should say so")


def killed_before():
    run = Run("killed_before")
    check(run, run.code != 0 and run.seconds < 10, "a killed rank must not be a success")
    # Where the launcher lets the others live (its exit code is then 0, whatever theirs), they find out.
    run = Run("killed_before", mpirun=["--enable-recovery"])
    expect_given_up(run, [begins(rank, "session: MPI_Init_thread has not ended after 2 s") for rank in range(LAST)], 10,
                    launcher=run.code)


def stopped_after_init():
    joined = "session: the job cannot be joined: mpi: "
    expect_given_up(Run("last_stopped_after_init"),
                    [begins(rank, f"{joined}rank {LAST} has not called mpi_communicator() after 2 s (it is stopped, ")
                     for rank in range(LAST)], 12)
    expect_given_up(Run("first_stopped_after_init"),
                    [f"{joined}rank 0 has not called mpi_communicator() after 2 s"], 14)


def stopped_while_joining():
    expect_given_up(Run("stopped_while_joining"), ["session: the communicator of the job is not there after 8 s"], 18)


def not_connected():
    """Where every process is a world of its own, MPI is left in good order."""
    run = Run("not_connected", ranks=0, OMPI_COMM_WORLD_SIZE="4")
    expect(run, 0, out=["caught: session: 4 processes were started, but MPI has connected 1", "\nfinalised\n"])


def late_note():
    expect(Run("late_note"), 70, err=everyone(LAST, "failed after the others were done"))


def srun_without_pmix():
    run = Run("all_reduce", ranks=0, SLURM_STEP_ID="0", SLURM_STEP_NUM_TASKS="4", SLURM_PROCID="2")
    check(run, run.code != 0, "should fail")
    check(run, "srun --mpi=pmix" in run.err and "mpirun" in run.err and '"self"' in run.err, "should say what to do")
    expect(Run("self", ranks=0, SLURM_STEP_ID="0", SLURM_STEP_NUM_TASKS="4"), 0, out=["sum 1 of 1"])
    expect(Run("all_reduce", ranks=0, SLURM_STEP_ID="0", SLURM_STEP_NUM_TASKS="1"), 0, out=["sum 1 of 1"])


def quiet_exit():
    run = Run("quiet_exit")
    check(run, run.code != 0 and run.seconds < 10, "the job must end with an error")


def terminate_alone():
    expect(Run("uncaught", ranks=0), 70, err=[stops(0, "no such file: data.bin")])


def slow_rank():
    expect(Run("slow_rank"), 0, seconds=15)


def gave_up_nccl(run):
    for rank in range(LAST):
        check(run, stops(rank, "nccl: gave up all_reduce #2 'gradients' (bucket 0, step 1) after 2 s; "
                               f"rank {LAST} does not respond (stopped, dead or cut off)") in run.err,
              f"rank {rank} should name the rank that is gone")
    check(run, "went on" not in run.out, "nobody may go on")


def nccl_stopped():
    run = Run("stopped", limit=40)
    expect(run, 70, seconds=25)
    gave_up_nccl(run)


GAVE_UP_ON_LAST = (f"nccl: gave up all_reduce #2 'gradients' (bucket 0, step 1) after 2 s; rank {LAST} has not arrived "
                   "(its last collective was barrier #1 'step' (step 0))")


def nccl_stuck():
    """Threads that wait for the device throw once the communicator is aborted."""
    run = Run("stuck", limit=40)
    expect(run, 70, seconds=15, absent=["cannot be aborted"])
    for rank in range(LAST):
        check(run, stops(rank, GAVE_UP_ON_LAST) in run.err, f"rank {rank} should name the rank that does not come")


def nccl_unabortable():
    """Threads that nothing wakes up: their processes end all the same."""
    for mpirun in ([], ["--enable-recovery"]):  # which lets all of them speak; its exit code is 0, whatever theirs
        run = Run("unabortable", limit=40, mpirun=mpirun)
        check(run, mpirun or run.code == 70, "expected exit code 70")
        reports = [begins(rank, f"{GAVE_UP_ON_LAST}. all_reduce #2 'gradients' (bucket 0, step 1) is still on cuda:0 3 s "
                                "after NCCL's communicator was aborted: its kernel cannot be aborted")
                   for rank in range(LAST)]
        said = [report in run.err for report in reports]
        check(run, all(said) if mpirun else any(said), "ranks should say why they end")
        check(run, mpirun or run.seconds < 12, "took too long")
        check(run, "symmetric_memory(false)" in run.err, "and what to do")


def nccl_left_behind():
    """A watching thread that nobody waits for touches nothing once main() has returned."""
    run = Run("left_behind")
    expect(run, 0, seconds=15, absent=["stops"])
    check(run, run.out.count("the device is left alone") == RANKS, "every rank should end quietly")


def nccl_killed():
    # As it is: mpirun ends the run.
    run = Run("killed")
    check(run, run.code != 0 and run.seconds < 20, "a killed rank must not be a success")
    check(run, "went on" not in run.out, "nobody may go on")
    # Where the launcher lets the others live (its exit code is then 0, whatever theirs), they find out.
    gave_up_nccl(Run("killed", limit=40, mpirun=["--enable-recovery"]))


globals()[CASE]()
print(f"{CASE}: passed")
