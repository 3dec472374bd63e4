"""One training step of char_gpt against the same model in Python, 2 ranks with one thread each, alternating.

usage: compare_training.py [--bin build/release/bin] [--rounds 5] [--steps 12] [--peers ddp fsdp2 zero1 compute]

ddp: DistributedDataParallel and schedulefree; fsdp2: fully_shard and schedulefree; zero1: ZeroRedundancyOptimizer over
torch's fused AdamW, without Schedule-Free; compute: forward and backward alone, the bound of all. Random tokens.
Prints the median and quartiles of the seconds per step over all rounds, and the peak memory of a rank.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time


def model_of(dim, layers, heads, seq):
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
            self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
            self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

        def forward(self, x):
            shape = (*x.shape[:2], heads, dim // heads)
            q, k, v = (part.view(shape).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1))
            attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(attended.transpose(1, 2).reshape(x.shape))
            return x + self.down(functional.gelu(self.up(self.norm2(x))))

    class Gpt(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(256, dim), nn.Embedding(seq, dim)
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
            self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 256, bias=False)

        def forward(self, tokens):
            x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    return Gpt()


def train(o):
    """A rank of a peer, under torchrun."""
    import schedulefree
    import torch
    from torch import distributed
    from torch.nn import functional
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    torch.manual_seed(rank)
    model = model_of(o.dim, o.layers, o.heads, o.seq)
    schedule_free = lambda: schedulefree.AdamWScheduleFree(model.parameters(), lr=1e-3, weight_decay=0.1)
    if o.train == "ddp":
        model = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        optimizer = schedule_free()
    elif o.train == "fsdp2":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        optimizer = schedule_free()
    elif o.train == "zero1":
        from torch.distributed.optim import ZeroRedundancyOptimizer
        model = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        optimizer = ZeroRedundancyOptimizer(
            model.parameters(), optimizer_class=torch.optim.AdamW, lr=1e-3, weight_decay=0.1, fused=True)
    else:
        optimizer = None
    if hasattr(optimizer, "train"):
        optimizer.train()
    times = []
    for _ in range(o.steps):
        batch = torch.randint(0, 256, (o.batch, o.seq + 1))
        distributed.barrier()
        start = time.perf_counter()
        functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()).backward()
        if optimizer is not None:
            optimizer.step()
        model.zero_grad()
        times.append(time.perf_counter() - start)
    if rank == 0:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        print(json.dumps(dict(median_step_s=statistics.median(times[2:]), peak_rss_mib=peak)), flush=True)
    distributed.destroy_process_group()


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", default=os.path.join(here, "../../build/release/bin"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="+", default=["ddp", "fsdp2", "zero1", "compute"])
    parser.add_argument("--train", help=argparse.SUPPRESS)
    for name, value in dict(steps=12, dim=512, layers=6, heads=8, batch=2, seq=64).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    o = parser.parse_args()
    if o.train:
        return train(o)

    sizes = [word for name in ("steps", "dim", "layers", "heads", "batch", "seq") for word in (f"--{name}", str(getattr(o, name)))]
    environment = dict(os.environ, OMP_NUM_THREADS="1", OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    contenders = {"zerosched": ["mpirun", "-n", "2", "--oversubscribe", "--bind-to", "none", os.path.join(o.bin, "char_gpt"),
                                "--synthetic", "--threads", "1", "--sample", "0", "--json", *sizes]}
    for peer in o.peers:
        contenders[peer] = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
                            os.path.abspath(__file__), *sizes, "--train", peer]
    results = {name: [] for name in contenders}
    for _ in range(o.rounds):
        for name, command in contenders.items():
            out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE,
                                 stderr=subprocess.DEVNULL, text=True, timeout=300).stdout
            results[name].append(json.loads(out.rstrip().splitlines()[-1]))
    ours = statistics.median(result["median_step_s"] for result in results["zerosched"])
    for name, runs in results.items():
        times = sorted(run["median_step_s"] for run in runs)
        peak = max(run["peak_rss_mib"] for run in runs)
        print(f"{name:10} {statistics.median(times):.3f} s per step ({times[0]:.3f} to {times[-1]:.3f})"
              f"  {statistics.median(times) / ours:5.2f} x zerosched  {peak:.0f} MiB")


if __name__ == "__main__":
    main()
