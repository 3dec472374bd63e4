"""Seconds of a step of torch's fused AdamW and of the Python package schedulefree, on one tensor of as many elements as
bench_update_gpu has, and of that package on many. usage: other_optimizers.py JSON_FILE"""
import json
import os
import statistics
import sys

# The package as it was packed, if this Python has none.
sys.path.append(os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "python"))

try:
    import torch
except ImportError as error:
    print(f"SKIPPED: this Python has no torch ({error})")
    sys.exit(77)

ELEMENTS = 1 << 27
REPETITIONS = 10


def seconds_of_step(optimizer):
    times = []
    for repetition in range(-3, REPETITIONS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        optimizer.step()
        end.record()
        end.synchronize()
        if repetition >= 0:
            times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def parameters(dtype, tensors):
    made = []
    for _ in range(tensors):
        parameter = torch.nn.Parameter(torch.randn(ELEMENTS // tensors, device="cuda").to(dtype))
        parameter.grad = torch.randn(ELEMENTS // tensors, device="cuda").to(dtype)
        made.append(parameter)
    return made


def main():
    if not torch.cuda.is_available():
        print("SKIPPED: torch finds no GPU")
        return 77
    makers = {"torch.optim.AdamW fused": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1, fused=True)}
    figures = []
    try:
        import schedulefree
        makers["schedulefree.AdamWScheduleFree foreach"] = lambda p: schedulefree.AdamWScheduleFree(
            p, lr=1e-3, weight_decay=0.1, foreach=True)
    except ImportError:
        print("the package schedulefree is not here")
        figures.append({"optimizer": "schedulefree.AdamWScheduleFree", "skipped": "the package is not here"})
    for name, make in makers.items():
        for dtype in (torch.float32, torch.bfloat16):
            for tensors in (1, 160):
                optimizer = make(parameters(dtype, tensors))
                if hasattr(optimizer, "train"):
                    optimizer.train()
                seconds = seconds_of_step(optimizer)
                print(f"{name:40} {str(dtype):15} {tensors:4} tensors: {seconds * 1e3:8.3f} ms, "
                      f"{seconds / ELEMENTS * 1e12:7.3f} ps per element")
                figures.append({"optimizer": name, "dtype": str(dtype), "tensors": tensors, "elements": ELEMENTS,
                                "seconds": seconds})
                del optimizer
                torch.cuda.empty_cache()
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(figures, file)
    return 0


sys.exit(main())
