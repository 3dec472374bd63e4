"""step() of one process against the Python package schedulefree and torch's fused AdamW, alternating, on the
parameters of a GPT. Prints ns per parameter (median over all rounds) and ratios.

usage: compare_step.py [--bench build/release/bin/bench_step] [--rounds 5] [--steps 15] [--threads 1 2]
"""
import argparse
import os
import statistics
import subprocess
import sys
import time


def shapes(dim, layers, seq=64, vocabulary=256):
    block = [(dim,), (dim,), (3 * dim, dim), (3 * dim,), (dim, dim), (dim,),
             (dim,), (dim,), (4 * dim, dim), (4 * dim,), (dim, 4 * dim), (dim,)]
    return [(vocabulary, dim), (seq, dim), *block * layers, (dim,), (dim,), (vocabulary, dim)]


def time_python(kind, threads, steps, dim, layers):
    import schedulefree
    import torch
    torch.set_num_threads(threads)
    parameters = [torch.randn(shape).requires_grad_() for shape in shapes(dim, layers)]
    if kind == "adamw":
        optimizer = torch.optim.AdamW(parameters, weight_decay=0.1, fused=True)
    else:
        optimizer = schedulefree.AdamWScheduleFree(parameters, weight_decay=0.1, foreach=kind == "foreach")
        optimizer.train()
    gradients = [torch.randn_like(parameter) for parameter in parameters]
    for _ in range(steps):
        for parameter, gradient in zip(parameters, gradients):
            if parameter.grad is None:
                parameter.grad = gradient.clone()
            else:
                parameter.grad.copy_(gradient)  # the package works in place on it
        start = time.perf_counter()
        optimizer.step()
        print((time.perf_counter() - start) * 1e3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bench", default=os.path.join(os.path.dirname(__file__), "../../build/release/bin/bench_step"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--python", nargs=2, metavar=("KIND", "THREADS"), help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.python:
        return time_python(o.python[0], int(o.python[1]), o.steps, o.dim, o.layers)

    numels = []
    for shape in shapes(o.dim, o.layers):
        numel = 1
        for size in shape:
            numel *= size
        numels.append(numel)
    print(f"{sum(numels):,} parameters in {len(numels)} tensors, {o.rounds} rounds of {o.steps} steps")
    for threads in o.threads:
        again = [sys.executable, __file__, "--steps", str(o.steps), "--dim", str(o.dim), "--layers", str(o.layers), "--python"]
        contenders = {
            "zerosched": [o.bench, str(threads), str(o.steps), *map(str, numels)],
            "schedulefree, foreach": [*again, "foreach", str(threads)],
            "schedulefree, one by one": [*again, "loop", str(threads)],
            "torch AdamW, fused": [*again, "adamw", str(threads)],
        }
        times = {name: [] for name in contenders}
        for _ in range(o.rounds):
            for name, command in contenders.items():
                lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
                times[name] += [float(line) for line in lines[3:]]  # the first ones allocate
        ours = statistics.median(times["zerosched"])
        for name, values in times.items():
            median = statistics.median(values)
            print(f"{threads} threads  {name:26} {median * 1e6 / sum(numels):6.3f} ns/parameter"
                  f"   (quartiles {', '.join(f'{q * 1e6 / sum(numels):.3f}' for q in statistics.quantiles(values, n=4)[::2])})"
                  f"   {median / ours:5.2f} x zerosched")


if __name__ == "__main__":
    main()
