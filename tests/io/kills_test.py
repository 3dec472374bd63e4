"""Jobs that are killed at random moments of saving, rotating, exporting and resuming. Two optimizers save into one folder;
after each kill there must be a checkpoint of both, of one step, and the next save that ends well must leave nothing
behind. Calls of the file system are taken away in turns: renameat2, symbolic links, fallocate.

usage: kills_test.py KILLS [SEED]

ctest does it with 30 kills; by hand ZEROSCHED_BIN is the folder of programs, and PYTHONPATH tests/support.
"""
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import job
from processes import environment_of, kill, marked_processes

KILLS = int(sys.argv[1])
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else 1
# What is taken away.
MODES = ("", "renameat2", "symlink", "fallocate", "renameat2,symlink,fallocate")
RANKS_2_EVERY = 15  # of so many jobs one has two ranks, which take longer to start
MOST_STEPS = 300  # after so many a new training begins: what is loaded is compared with one from the start
LONGEST = 0.12  # seconds after the job has resumed, in which it saves some times


class Counts:
    def __init__(self):
        self.kills = dict.fromkeys(MODES, 0)
        self.before_resuming = self.of_two_ranks = self.unloadable = self.left_behind = 0
        self.steps = 0  # of the last save that ended well: no job may resume before it


def environment(mode, mark=""):
    return dict(os.environ, OMP_NUM_THREADS="1", OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                ZEROSCHED_TEST_WITHOUT=mode, LD_PRELOAD=job.program("libwithout_calls.so"), ZEROSCHED_TEST_JOB=mark)


def command(ranks, *arguments):
    launcher = job.mpirun(ranks) if ranks > 1 else []
    return [*launcher, job.program("kills_program"), *arguments]


def strike(mark, generator):
    """Kills all processes of a job, or, of one with two ranks, now and then one of them: then the others end by themselves."""
    pids = marked_processes(mark)
    ranks = [pid for pid in pids if "OMPI_COMM_WORLD_RANK" in environment_of(pid)]
    kill([generator.choice(ranks)] if ranks and generator.random() < 0.5 else pids)


def kill_one(root, mode, generator, ranks, counts):
    """Starts a job and kills it."""
    mark = f"{os.getpid()}-{sum(counts.kills.values())}"
    process = subprocess.Popen(command(ranks, root, "train", "0"), env=environment(mode, mark), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    early = generator.random() < 0.1
    line = ""
    if early:
        time.sleep(generator.uniform(0, 0.4))  # while it starts or loads
        counts.before_resuming += 1
    else:
        line = process.stdout.readline()
        time.sleep(generator.uniform(0, LONGEST))
    code = process.poll()
    strike(mark, generator)
    out, err = process.communicate(timeout=60)
    if code is not None or (not early and not line.startswith("resumed")):
        raise AssertionError(f"the job ended by itself with {code}: {line}{out}\n{err}")
    counts.kills[mode] += 1
    counts.of_two_ranks += ranks > 1


def names_left(root):
    """What is in the folder beyond the checkpoints that are kept."""
    allowed = re.compile(r"step_\d+|last|latest|generator\.safetensors")
    names = os.listdir(root)
    extra = [name for name in names if not allowed.fullmatch(name)]
    steps = sorted((name for name in names if name.startswith("step_")), key=lambda name: int(name[5:]))
    extra += steps[:-2]
    for step in [*steps, "last"]:
        for folder, below in ((step, {"manifest.json", "optimizer_0", "optimizer_1"}),
                              (f"{step}/optimizer_0", None), (f"{step}/optimizer_1", None)):
            for name in os.listdir(os.path.join(root, folder)):
                if name not in below if below else not re.fullmatch(
                        r"manifest\.json|module\.safetensors|rank_0000[01]\.safetensors", name):
                    extra.append(f"{folder}/{name}")
    return extra


def resume_and_save(root, mode, kills, counts):
    """A job that nobody kills. Counts what it could not load, or left."""
    result = subprocess.run(command(1, root, "save"), env=environment(mode), capture_output=True, text=True, timeout=120,
                            check=False)
    resumed = re.match(r"resumed (\d+)", result.stdout)
    if result.returncode != 0 or not resumed or int(resumed.group(1)) < counts.steps:
        counts.unloadable += 1
        print(f"after kill {kills} without [{mode}], when step {counts.steps} had been saved: {result}", flush=True)
        return
    counts.steps = int(resumed.group(1)) + 1
    if left := names_left(root):
        counts.left_behind += len(left)
        print(f"after kill {kills} without [{mode}] there are {left}", flush=True)


def begin(root, mode, kills, counts):
    shutil.rmtree(root, ignore_errors=True)
    os.mkdir(root)
    counts.steps = 0
    resume_and_save(root, mode, kills, counts)


def kill_many(root, mode, wanted, generator, counts):
    begin(root, mode, 0, counts)
    done = 0
    while done < wanted:
        # Several in a row: the next job has to live with what two killed ones left.
        for _ in range(min(generator.randint(1, 3), wanted - done)):
            ranks = 2 if sum(counts.kills.values()) % RANKS_2_EVERY == RANKS_2_EVERY - 1 else 1
            kill_one(root, mode, generator, ranks, counts)
            done += 1
        resume_and_save(root, mode, done, counts)
        if counts.steps > MOST_STEPS:
            begin(root, mode, done, counts)


def check_the_counting(root):
    """A folder in which something is left, and one whose checkpoints are gone."""
    counts = Counts()
    begin(root, "", 0, counts)
    os.makedirs(f"{root}/.step_7.partial/not ours")
    resume_and_save(root, "", "none, on purpose,", counts)
    shutil.rmtree(root)
    os.mkdir(root)
    resume_and_save(root, "", "none, on purpose,", counts)
    if counts.left_behind != 1 or counts.unloadable != 1:
        sys.exit(f"FAILED: what goes wrong is not counted: {vars(counts)}")


def report(counts):
    kills = ", ".join(f"{count} without [{mode}]" for mode, count in counts.kills.items())
    print(f"{sum(counts.kills.values())} kills with seed {SEED} ({kills}; {counts.before_resuming} before the job had resumed, "
          f"{counts.of_two_ranks} of two ranks): {counts.unloadable} jobs without a checkpoint of both optimizers of one step, "
          f"{counts.left_behind} files left after the next good save", flush=True)


def main():
    generator = random.Random(SEED)
    counts = Counts()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("FAILED: stopped"))  # and says how far it has come
    try:
        with tempfile.TemporaryDirectory(prefix="zerosched-test-") as folder:
            check_the_counting(os.path.join(folder, "control"))
            for number, mode in enumerate(MODES):
                wanted = (KILLS - sum(counts.kills.values())) // (len(MODES) - number)
                kill_many(os.path.join(folder, mode or "all"), mode, wanted, generator, counts)
    finally:
        report(counts)
    if sum(counts.kills.values()) != KILLS or counts.unloadable or counts.left_behind:
        sys.exit("FAILED")


main()
