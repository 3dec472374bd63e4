"""Starts session_program as real jobs and checks how they end: exit code, output, time, no process left.

usage: session_test.py PROGRAM CASE
"""
import os
import signal
import sys
import time

import job

PROGRAM, CASE = sys.argv[1:3]
RANKS = 3


def environment(**extra):
    """The caller's, without what belongs to a job that the caller may be in."""
    clean = {name: value for name, value in os.environ.items()
             if not name.startswith(("OMPI_COMM", "PMIX_", "PMI_", "SLURM_", "PALS_", "FLUX_", "JSM_"))
             and name not in ("RANK", "WORLD_SIZE")}
    return {**clean, "OMP_NUM_THREADS": "1", **extra}


class Run:
    """The end of one job: code, stdout, stderr, seconds."""

    def __init__(self, mode, ranks=RANKS, limit=30, mpirun=(), program=(PROGRAM,), **extra):
        launcher = job.mpirun(ranks, *mpirun) if ranks else []
        start = time.monotonic()
        self.code, self.out, self.err = job.run([*launcher, *program, mode], limit, environment(**extra))
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


def alone_under_mpirun():
    """As without mpirun: a handler decides the exit code, and a failure that was caught is over."""
    expect(Run("unwinding", ranks=1), 1, out=["caught: the model is broken"], absent=["stops"])
    expect(Run("poisoned", ranks=1), 0, absent=["stops"])
    expect(Run("rethrown", ranks=0), -6, out=["caught: the model is broken"])
    expect(Run("uncaught", ranks=1), 70, err=[stops(0, "no such file: data.bin")], absent=["terminate called"])


def rethrown():
    """A handler outside of the session that throws on does not outrun the end."""
    run = Run("rethrown")
    expect(run, 70, err=[stops(LAST, "an exception left the scope of its Session")],
           out=["caught: the model is broken"], absent=["terminate called", "Signal: Aborted"])


def raise_failure():
    """Every rank hears of it, and the host goes on; no exit code but its own."""
    for mode in ("raise", "raise_unwinding"):
        run = Run(mode)
        expect(run, 0, out=["caught: the mesh is broken"], absent=["stops"])
        check(run, run.out.count("the host goes on") == RANKS, "every host should go on")
        told = (f"caught: rank {LAST}: no more of this" if mode == "raise" else
                f"caught: rank {LAST}: an exception left the scope of its Session")
        check(run, run.out.count(told) >= LAST, f"the others should be told: {told}")


def own_mpi():
    """An exception that nobody catches, where the program has initialised MPI itself: with a session and without one."""
    for mode in ("own_mpi", "own_mpi_and_session"):
        expect(Run(mode), 70, err=everyone(LAST, "no such file: data.bin"), absent=["terminate called", "Signal: Aborted"])


def finalize_after_error():
    """What one rank has to say is said before its MPI ends."""
    run = Run("finalize_after_error")
    expect(run, 0)
    check(run, run.out.count("caught: the disk is gone") == RANKS, "every rank should hear it")


def forked():
    """Whatever a child does, the job goes on."""
    used = f"caught: mpi: this process is a child that rank {LAST} has forked"
    aborted = f"caught: Session::abort() was called in a child that fork() has made of rank {LAST}"
    for how, end, refusal in (("exit", "child ended with 0", used), ("return", "child ended with 0", used),
                              ("throw", "child ended by signal 6", used), ("abort", "child ended with 0", aborted)):
        run = Run(f"fork_{how}")
        expect(run, 0, out=[end, refusal], absent=["stops"])
        check(run, run.out.count(f"sum {RANKS} of {RANKS}") == 3 * RANKS, "the job should go on")


def suspended():
    """A job that was stopped for longer than its timeout goes on; as do ranks that were stopped one after the other."""
    mpirun = job.mpirun(RANKS)
    started = job.Job([*mpirun, PROGRAM, "suspended"], environment())
    started.wait_for(lambda: len(started.ranks()) == RANKS, "the ranks")
    time.sleep(2)  # they are joining, or have joined
    ranks = list(started.ranks().values())
    for sign, pause in ((signal.SIGSTOP, 5), (signal.SIGCONT, 0)):
        for pid in ranks:
            os.kill(pid, sign)
        time.sleep(pause)
    result = started.end(30)
    if result.code != 0 or result.out.count("sum") != 80 * RANKS:
        sys.exit(f"FAILED exit code {result.code}\n{result.out}\n{result.err}")


def session_ends_early():
    why = f"mpi: barrier #0 'step': rank {LAST} has come to the end of its Session; every rank must call the same collectives before"
    expect(Run("session_ends_early"), 70, err=everyone(0, why, why))


def crowded():
    cores = len(os.sched_getaffinity(0))
    lines = {"OMP_NUM_THREADS": str(cores)}
    warning = "zerosched: on host "
    run = Run("all_reduce", **lines)
    text = (f"{RANKS} ranks with {RANKS * cores} threads in all share {cores} core")
    expect(run, 0, err=[warning, text])
    if cores >= 2:
        expect(Run("all_reduce", ranks=2, **lines), 0, err=[warning, f"Set OMP_NUM_THREADS={cores // 2}, or start with launch/run"])
        expect(Run("all_reduce", ranks=2), 0, absent=[warning])
        run = Run("all_reduce", ranks=2, program=["taskset", "-c", str(min(os.sched_getaffinity(0))), PROGRAM])
        expect(run, 0, seconds=25, err=[warning, f"2 ranks with 2 threads in all share 1 core of {os.cpu_count()}", "--bind-to none"])


def unconnected_launchers():
    for variables, parts in (
            ({"RANK": "1", "WORLD_SIZE": "4"}, ("torchrun", "RANK=1 and WORLD_SIZE=4", "launch/run or mpirun")),
            ({"PALS_RANKID": "2"}, ("PALS", "PALS_RANKID=2", "mpiexec of the MPI")),
            ({"FLUX_TASK_RANK": "0", "FLUX_JOB_SIZE": "2"}, ("flux run", "FLUX_JOB_SIZE=2", "-o pmi=pmix")),
            ({"JSM_NAMESPACE_RANK": "0", "JSM_NAMESPACE_SIZE": "8"}, ("jsrun", "JSM_NAMESPACE_SIZE=8", "mpirun"))):
        run = Run("all_reduce", ranks=0, **variables)
        check(run, run.code != 0, f"should fail with {variables}")
        for part in (*parts, '"self"'):
            check(run, part in run.err, f"stderr should have {part!r}")
        expect(Run("self", ranks=0, **variables), 0, out=["sum 1 of 1"])
        expect(Run("all_reduce", ranks=2, **variables), 0, out=["sum 2 of 2"])
    expect(Run("all_reduce", ranks=0, RANK="0", WORLD_SIZE="1"), 0, out=["sum 1 of 1"])


def poisoned():
    note = f"rank {LAST}: nan in the loss"
    expect(Run("poisoned"), 70, err=everyone(LAST, note, note))


def abort():
    expect(Run("abort"), 75, err=everyone(LAST, "enough"))


def expect_stopped_rank_named(mode, collective):
    """By those that wait for it; the session itself has agreed on devices in three collectives."""
    run = Run(mode, limit=40)
    expect(run, 70, seconds=15)
    for rank in range(LAST):
        check(run, stops(rank, f"mpi: gave up {collective} after 2 s; rank {LAST} does not respond "
                               "(stopped, dead or cut off)") in run.err, f"rank {rank} should name the stopped rank")


def stopped():
    expect_stopped_rank_named("stopped", "all_reduce #4 'loss'")


def stopped_in_duplicate():
    expect_stopped_rank_named("stopped_in_duplicate", "barrier #3 'duplicate'")


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
                   "(its last collective was barrier #1 'step' (step 0)), but answers: it is busy outside of the library. If that "
                   "may take so long, set a longer SessionOptions::timeout")


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
