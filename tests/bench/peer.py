"""A rank of what users would take instead of zerosched, under torchrun: trains a GPT as char_gpt's on random tokens and
prints, on rank 0, a JSON object with the median seconds of a step.

usage: peer.py ddp|fsdp2|zero1|compute --steps 12 --dim 512 --layers 6 --heads 8 --batch 2 --seq 64

ddp: DistributedDataParallel and schedulefree; fsdp2: fully_shard and schedulefree; zero1: ZeroRedundancyOptimizer over
torch's fused AdamW, without Schedule-Free; compute: forward and backward alone.
"""
import argparse
import json
import time

import schedulefree
import torch
from torch import distributed, nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        shape = (*x.shape[:2], self.heads, x.shape[2] // self.heads)
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(x.shape))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Gpt(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(256, o.dim), nn.Embedding(o.seq, o.dim)
        self.blocks = nn.ModuleList(Block(o.dim, o.heads) for _ in range(o.layers))
        self.norm, self.head = nn.LayerNorm(o.dim), nn.Linear(o.dim, 256, bias=False)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def prepare(peer, model):
    """The model as the peer wraps it, and its optimizer, if any."""
    schedule_free = lambda parameters: schedulefree.AdamWScheduleFree(parameters, lr=1e-3, weight_decay=0.1)
    if peer == "fsdp2":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model, schedule_free(model.parameters())
    if peer == "compute":
        return model, None
    model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    if peer == "ddp":
        return model, schedule_free(model.parameters())
    from torch.distributed.optim import ZeroRedundancyOptimizer
    return model, ZeroRedundancyOptimizer(
        model.parameters(), optimizer_class=torch.optim.AdamW, lr=1e-3, weight_decay=0.1, fused=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=["ddp", "fsdp2", "zero1", "compute"])
    for name, value in dict(steps=12, dim=512, layers=6, heads=8, batch=2, seq=64).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    o = parser.parse_args()
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    torch.manual_seed(distributed.get_rank())
    model, optimizer = prepare(o.peer, Gpt(o))
    if hasattr(optimizer, "train"):
        optimizer.train()
    ends = []
    for _ in range(o.steps):
        batch = torch.randint(0, 256, (o.batch, o.seq + 1))
        distributed.barrier()
        functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()).backward()
        if optimizer is not None:
            optimizer.step()
        model.zero_grad()
        ends.append(time.perf_counter())
    if distributed.get_rank() == 0:
        print(json.dumps(dict(mean_step_s=(ends[-1] - ends[1]) / (o.steps - 2))), flush=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
