"""The steps of a check on a GPU, in the order of what is worth most if time runs out."""
import json
import os
import re
import statistics
import sys
import tempfile

import machine
from runner import Failure, Skip, Step

# What sanitizers have no time for, or no memory.
SMALL = "--gtest_filter=-*.MoreThan2To31Elements:*.UpdateGivesTheBitsOfTheCpu:*.ABucketOfTheUsualSize"
TINY_GPT = "--synthetic --dim 32 --layers 1 --heads 2 --batch 2 --seq 16 --steps 3 --eval-batches 1 --progress off"
# Float32 sums in another order, some steps long.
NEAR = 5e-3


def counted(name, run):
    """How many cases passed, in the output that `run` returns. A case that is skipped does not make the others so."""
    figures = {}
    try:
        output = run()
    except Skip as skip:
        output = skip.output
        figures["skipped"] = str(skip)
    found = re.search(r"\[  PASSED  \] (\d+) test", output)
    passed = int(found.group(1)) if found else 0
    if passed == 0:
        if figures:
            raise Skip(figures["skipped"])
        raise Failure(f"{name} ran no test")
    return dict(figures, tests=passed)


def farthest(losses, reference):
    """The largest relative difference, over the steps that both have."""
    return max(abs(a - b) / b for a, b in zip(losses, reference))


class Checks:
    def __init__(self, bundle=None, torch=None, out=None):
        self.bundle, self.torch, self.out = bundle, torch, out
        self.measured = {}  # what later steps compare with

    def steps(self):
        return [
            Step("programs", "every program and its libraries load", 60, self.programs, False),
            Step("ranks", "mpirun starts two ranks on the CPU", 60, self.ranks, False),
            Step("kernels", "the CUDA kernels give the bits of the CPU", 120, self.kernels),
            Step("engine", "the engine trains to the bits of the CPU, alone, also with NCCL's memory", 60, self.engine),
            Step("nccl", "NCCL in a world of one, with registered windows", 90, self.nccl),
            Step("two_ranks", "the engine, two ranks on one GPU over MPI", 60, self.two_ranks),
            Step("staging", "collectives of two ranks through pinned memory", 45, self.staging),
            Step("char_gpt", "200 steps of training; the first as on the CPU", 60, self.char_gpt),
            Step("optimizers", "each of them trains as on the CPU", 60, self.optimizers),
            Step("checkpoint", "saved by two ranks on the GPU, exported by one on the CPU", 60, self.checkpoint),
            Step("update", "the update beside a device-to-device copy", 75, self.update),
            Step("pack", "gradients packed into a bucket, beside a copy on the device", 30, self.pack),
            Step("host", "microseconds of the host per hook and per step()", 30, self.host),
            Step("memory", "bytes per parameter beside what the state must take", 30, self.memory),
            Step("step", "a step of GPT-2, its forward, backward and step()", 45, self.step),
            Step("timeline", "the same step as the timeline predicts it", 30, self.timeline),
            Step("torch", "torch's fused AdamW and the package schedulefree", 60, self.other_optimizers),
            Step("memcheck", "the kernels touch no memory that is not theirs", 90, self.memcheck),
            Step("racecheck", "the kernels race for no shared memory", 90, self.racecheck),
            Step("large", "more than 2^31 elements", 40, self.large),
            Step("memcheck_engine", "the engine touches no memory that is not its own", 90, self.memcheck_engine),
            Step("overlap", "how much of the reduce-scatter backward hides, on two GPUs", 60, self.overlap),
        ]

    def run(self, do, name, *arguments, ranks=0, **environment):
        if name not in self.bundle.programs():
            raise Skip(f"{name} was not packed")
        return do.run(self.bundle.program(name, *arguments, ranks=ranks),
                      dict(self.bundle.environment(self.torch), **environment))

    def figures(self, do, name, *arguments, ranks=0):
        """Runs a program that writes figures where --json says; what it has written before it failed is not lost."""
        path = os.path.join(self.out, f"{name}.json")
        try:
            self.run(do, name, *arguments, "--json", path, ranks=ranks)
            with open(path, encoding="utf-8") as file:
                return json.load(file)
        finally:
            if os.path.exists(path):
                with open(path, encoding="utf-8") as file:
                    do.output += file.read()
                os.remove(path)

    def tests(self, do, name, *arguments, ranks=0, **environment):
        return counted(name, lambda: self.run(do, name, *arguments, ranks=ranks, **environment))

    def programs(self, do):
        for name in self.bundle.programs():
            missing = [line.strip() for line in do.run(
                ["ldd", self.bundle.path("bin", name)], self.bundle.environment(self.torch)).splitlines()
                       if "not found" in line]
            if missing:
                raise Failure(f"{name}: {'; '.join(missing)}")
            self.run(do, name, "--gtest_list_tests" if name.endswith("_test") else "--help")
        return {"programs": self.bundle.programs()}

    def ranks(self, do):
        output = self.run(do, "char_gpt", *TINY_GPT.split(), "--device", "cpu", "--json", ranks=2)
        report = json.loads([line for line in output.splitlines() if line.startswith("{")][-1])
        if report["world_size"] != 2:
            raise Failure(f"the world has {report['world_size']} ranks, not 2")
        return report

    def kernels(self, do):
        return self.tests(do, "cuda_gpu_test", "--gtest_filter=-*.MoreThan2To31Elements")

    def large(self, do):
        return self.tests(do, "cuda_gpu_test", "--gtest_filter=*.MoreThan2To31Elements")

    def engine(self, do):
        return self.tests(do, "engine_gpu_test", ranks=1)

    def two_ranks(self, do):
        return self.tests(do, "engine_gpu_test", ranks=2)

    def nccl(self, do):
        # What NCCL says of itself and of windows goes to the log.
        return self.tests(do, "comm_gpu_conformance_test", "--gtest_filter=*nccl*", ranks=1, NCCL_DEBUG="INFO",
                          NCCL_DEBUG_SUBSYS="INIT,REG")

    def staging(self, do):
        return self.tests(do, "comm_gpu_conformance_test", "--gtest_filter=*mpi_staged*", ranks=2)

    def losses(self, do, device, steps, *more):
        """Of char_gpt, step by step."""
        metrics = os.path.join(self.out, "char_gpt.jsonl")
        try:
            self.run(do, "char_gpt", "--data", self.bundle.path("data", "king_james.txt"), "--device", device, "--metrics",
                     metrics, "--steps", steps, "--threads", 2, "--progress", "off", "--dim", 128, "--layers", 4,
                     "--heads", 4, "--batch", 16, "--seq", 128, "--warmup-steps", 20, "--eval-batches", 4, *more)
            with open(metrics, encoding="utf-8") as file:
                return [json.loads(line)["loss"] for line in file]
        finally:
            if os.path.exists(metrics):
                os.remove(metrics)

    def char_gpt(self, do):
        on_gpu, on_cpu = (self.losses(do, device, steps, "--lr", 5e-3) for device, steps in [("cuda", 200), ("cpu", 5)])
        far = farthest(on_gpu, on_cpu)
        if far > NEAR:
            raise Failure(f"the losses of the first steps are {on_gpu[:5]}, on the CPU {on_cpu}")
        first, last = statistics.mean(on_gpu[:5]), statistics.mean(on_gpu[-10:])
        if last > 0.6 * first:
            raise Failure(f"the loss was {first:.3f} and is {last:.3f} after 200 steps")
        return {"first_losses": on_gpu[:5], "on_cpu": on_cpu, "relative_difference": far, "last_loss": last}

    def optimizers(self, do):
        names = re.search(r"algorithm: (\w+(?:,\w+)*)", self.run(do, "char_gpt", "--help"))
        if not names:
            raise Failure("char_gpt --help names no optimizers")
        figures = {}
        for name in names.group(1).split(","):
            on_gpu, on_cpu = (self.losses(do, device, 8, "--optimizer", name) for device in ("cuda", "cpu"))
            figures[name] = {"relative_difference": farthest(on_gpu, on_cpu), "last_loss": on_gpu[-1]}
            if figures[name]["relative_difference"] > NEAR:
                raise Failure(f"{name}: the losses are {on_gpu}, on the CPU {on_cpu}")
        return figures

    def checkpoint(self, do):
        """The weights to ship as two ranks on a GPU export them, and as the CPU does from their checkpoint, bit for bit."""
        with tempfile.TemporaryDirectory() as folder:
            exports = []
            for device, ranks, more in [("cuda", 2, ("--checkpoint-every", 3)), ("cpu", 1, ("--resume", "latest"))]:
                exports.append(os.path.join(folder, f"{device}.safetensors"))
                self.run(do, "char_gpt", *TINY_GPT.split(), "--device", device, "--checkpoint-dir",
                         os.path.join(folder, "checkpoints"), *more, "--export", exports[-1], ranks=ranks)
            of_gpu, of_cpu = (open(path, "rb").read() for path in exports)
        if of_gpu != of_cpu:
            raise Failure(f"the exports differ: {len(of_gpu)} bytes on the GPU, {len(of_cpu)} from its checkpoint")
        return {"bytes": len(of_gpu)}

    def update(self, do):
        self.measured["update"] = self.figures(do, "bench_update_gpu")
        return self.measured["update"]

    def pack(self, do):
        return self.figures(do, "bench_pack_gpu")

    def host(self, do):
        return self.figures(do, "bench_step_gpu", "--what", "host")["host"]

    def memory(self, do):
        return self.figures(do, "bench_step_gpu", "--what", "memory")["memory"]

    def step(self, do):
        self.measured["step"] = self.figures(do, "bench_step_gpu", "--what", "step")["step"]
        return self.measured["step"]

    def timeline(self, do):
        measured = self.measured.get("step")
        if measured is None:
            raise Skip("there is nothing to compare with: the step 'step' was not measured")
        predicted = self.figures(do, "bench_timeline", "--models", "124M", "--gpus", 1, "--buckets", 25)[0]
        names = [f"{part}_seconds" for part in ("step", "forward", "backward", "update", "host")]
        compared = {name: {"predicted": predicted[name], "measured": measured[name]}
                    for name in names if name in predicted and name in measured}
        for name, both in compared.items():
            do.log.write(f"{name:18} predicted {1e3 * both['predicted']:9.3f} ms, measured {1e3 * both['measured']:9.3f} ms\n")
        return compared

    def other_optimizers(self, do):
        path = os.path.join(self.out, "other_optimizers.json")
        do.run([sys.executable, "-B", self.bundle.path("runner", "other_optimizers.py"), path], dict(os.environ))
        with open(path, encoding="utf-8") as file:
            figures = json.load(file)
        os.remove(path)
        return figures

    def sanitize(self, do, tool, name, *options, arguments=()):
        sanitizer = machine.find_sanitizer()
        if sanitizer is None:
            raise Skip("compute-sanitizer is not on this machine, nor where it was packed")
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", *options, *self.bundle.program(name, *arguments)]
        return counted(name, lambda: do.run(command, self.bundle.environment(self.torch), skips=("Device not supported",)))

    def memcheck(self, do):
        return self.sanitize(do, "memcheck", "cuda_gpu_test", "--leak-check", "no", arguments=[SMALL])

    def racecheck(self, do):
        return self.sanitize(do, "racecheck", "cuda_gpu_test", arguments=[SMALL])

    def memcheck_engine(self, do):
        # NCCL asks for what a GPU may not have, and takes the error for an answer.
        return self.sanitize(do, "memcheck", "engine_gpu_test", "--leak-check", "no", "--report-api-errors", "no")

    def overlap(self, do):
        gpus = len(machine.gpu_facts())
        if gpus < 2:
            raise Skip(f"{gpus} GPU here; ranks that share one take turns")
        output = self.run(do, "bench_overlap", "--device", "cuda", "--comm", "nccl", ranks=2)
        return {"said": output.splitlines()}
