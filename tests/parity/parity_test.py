"""zerosched against the Python package schedulefree, live: random groups, options, shapes and gradients.

usage: parity_test.py alone|alone_averaged|mpi|mpi_averaged

Measure: max|difference| / max|reference| per tensor, after the last step. Where the package has no answer (beta1 = 0
and beta1 = 1, float32 state of bfloat16 parameters) the reference is Plain below, which is compared with the package too.
"""
import json
import math
import os
import sys
import tempfile
import unittest

import job

try:
    import numpy
    import torch
    import schedulefree
except ImportError as error:
    job.skip(f"{error}: needs a Python with torch and schedulefree, named by ZEROSCHED_PYTHON")

STEPS = 200
SHAPES = [(7,), (3, 5), (), (71,), (40, 13), (1,), (2, 3, 4), (130,), (33,)]
BARS = {"float64": 1e-12, "float32": 4e-6, "bfloat16": 4e-6}
BFLOAT16_BAR = 2.0 ** -8

# Settings of two groups; the second differs from the first where a random draw says so.
DEFAULTS = dict(lr=0.0025, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, warmup_steps=0, r=0.0, weight_lr_power=2.0)
SETTINGS = {
    "defaults": {},
    "decay_and_warmup": dict(lr=0.01, weight_decay=0.1, warmup_steps=50),
    "long_warmup": dict(lr=0.02, warmup_steps=400, betas=(0.95, 0.99)),
    "polynomial_weights": dict(r=1.5, weight_lr_power=1.0, lr=0.005, weight_decay=0.01),
    "equal_weights": dict(weight_lr_power=0.0, betas=(0.5, 0.9), eps=1e-6),
    "large_eps": dict(eps=0.1, lr=0.05, betas=(0.98, 0.95), warmup_steps=10),
    "small_beta1": dict(betas=(0.1, 0.99), lr=0.003, weight_decay=0.05),
}
ENDS = {
    "polyak_ruppert": dict(betas=(0.0, 0.99), lr=0.003, weight_decay=0.05, warmup_steps=20),
    "primal": dict(betas=(1.0, 0.99), lr=0.003, weight_decay=0.05, weight_lr_power=0.0),
}


class Plain:
    """Schedule-Free AdamW of one group, line by line (arXiv 2405.15682), in the precision of `dtype`."""

    def __init__(self, parameters, options, dtype):
        self.options, self.k, self.weight_sum, self.lr_max = options, 0, 0.0, -1.0
        self.z = [p.detach().to(dtype).clone() for p in parameters]
        self.x = [p.detach().to(dtype).clone() for p in parameters]
        self.y = [p.detach().to(dtype).clone() for p in parameters]
        self.v = [torch.zeros_like(z) for z in self.z]

    def step(self, gradients, lr):
        o = self.options
        beta1, beta2 = o["betas"]
        lr *= (self.k + 1) / o["warmup_steps"] if self.k < o["warmup_steps"] else 1.0
        self.lr_max = max(self.lr_max, lr)
        weight = (self.k + 1) ** o["r"] * self.lr_max ** o["weight_lr_power"]
        self.weight_sum += weight
        c = weight / self.weight_sum if self.weight_sum else 0.0
        for i, gradient in enumerate(gradients):
            if gradient is None:
                continue
            g = gradient.to(self.z[i].dtype)
            self.v[i] = beta2 * self.v[i] + (1 - beta2) * g * g
            denominator = (self.v[i] / (1 - beta2 ** (self.k + 1))).sqrt() + o["eps"]
            self.z[i] = self.z[i] - lr * (g / denominator + o["weight_decay"] * self.y[i])
            self.x[i] = (1 - c) * self.x[i] + c * self.z[i]
            self.y[i] = beta1 * self.x[i] + (1 - beta1) * self.z[i]
        self.k += 1

    def state(self):
        return [dict(z=z, x=x, v=v, y=y) for z, x, v, y in zip(self.z, self.x, self.v, self.y)]


class Package:
    """The same through the package."""

    def __init__(self, parameters, options, foreach):
        self.parameters = [p.detach().clone().requires_grad_() for p in parameters]
        self.optimizer = schedulefree.AdamWScheduleFree(self.parameters, foreach=foreach, **options)
        self.optimizer.train()

    def step(self, gradients, lr):
        for parameter, gradient in zip(self.parameters, gradients):
            parameter.grad = None if gradient is None else gradient.clone()
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()

    def state(self):
        y = [p.detach().clone() for p in self.parameters]
        self.optimizer.eval()
        result = []
        for parameter, y_i in zip(self.parameters, y):
            state = self.optimizer.state[parameter]
            result.append(dict(z=state.get("z", y_i), x=parameter.detach(), y=y_i,
                               v=state.get("exp_avg_sq", torch.zeros_like(y_i))))
        return result


class Case:
    """One random job: what the program reads, and the references' results."""

    def __init__(self, name, options, dtype, world, averaged, seed):
        self.name, self.dtype = name, dtype
        generator = torch.Generator().manual_seed(seed)
        self.torch_dtype = getattr(torch, dtype)
        uniform = lambda: torch.rand((), generator=generator, dtype=torch.float64).item()
        normal = lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(self.torch_dtype)

        first = dict(DEFAULTS, **options)
        second = dict(first, lr=first["lr"] * (0.5 + uniform()), eps=first["eps"] * (1 + uniform()),
                      weight_decay=first["weight_decay"] + (0.02 if uniform() < 0.5 else 0),
                      warmup_steps=first["warmup_steps"] + int(20 * uniform()))
        cut = 1 + int(uniform() * (len(SHAPES) - 1))
        self.groups = [(first, SHAPES[:cut]), (second, SHAPES[cut:])]
        self.initial = [normal(shape) for shape in SHAPES]
        foreach = uniform() < 0.5

        references = [("plain", lambda p, o: Plain(p, o, torch.float64 if dtype == "float64" else torch.float32))]
        if name in SETTINGS and dtype != "bfloat16":
            references.append(("package", lambda p, o: Package(p, o, foreach)))
        slices = [slice(0, cut), slice(cut, len(SHAPES))]
        runs = {kind: [make(self.initial[s], o) for s, (o, _) in zip(slices, self.groups)] for kind, make in references}

        self.steps, self.gradients = [], []
        sources = 1 if averaged else world
        for step in range(STEPS):
            scale = math.exp(2 * uniform() - 3)
            drop = uniform() < 0.2  # a step in which some parameters are not used, by some ranks or by all
            per_source = [[None if drop and uniform() < 0.4 else normal(shape) * scale for shape in SHAPES]
                          for _ in range(sources)]
            lr = [o["lr"] * (1.0 if step < 100 else 0.7 + 0.3 * math.cos(step)) for o, _ in self.groups]
            self.steps.append(dict(lr=lr, present=["".join("0" if g is None else "1" for g in gradients)
                                                   for gradients in per_source]))
            self.gradients += [g for gradients in per_source for g in gradients if g is not None]
            mean = []
            for of_ranks in zip(*per_source):
                there = [g for g in of_ranks if g is not None]
                mean.append(sum(there[1:], there[0]) / sources if there else None)
            for of_groups in runs.values():
                for s, of_group, group_lr in zip(slices, of_groups, lr):
                    of_group.step(mean[s], group_lr)
        self.expected = {kind: [state for of_group in of_groups for state in of_group.state()]
                         for kind, of_groups in runs.items()}
        self.averaged = averaged

    def write(self, folder, overlap):
        os.mkdir(folder)
        with open(folder + "/case.json", "w") as file:
            groups = [dict(options=options, shapes=shapes) for options, shapes in self.groups]
            json.dump(dict(dtype=self.dtype, averaged=self.averaged, overlap=overlap, bucket_bytes=400,
                           groups=groups, steps=self.steps), file)
        for name, tensors in (("initial", self.initial), ("gradients", self.gradients)):
            with open(f"{folder}/{name}.bin", "wb") as file:
                for tensor in tensors:
                    file.write(bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))

    def compare(self, folder):
        """Largest relative distance by reference and kind of state, each as a share of its bar."""
        values = numpy.fromfile(folder + "/result.bin", dtype=numpy.float64)
        at, shares = 0, {}
        for i, shape in enumerate(SHAPES):
            numel = math.prod(shape)
            beta1 = next(o for o, shapes in self.groups if shape in shapes)["betas"][0]
            for which in ("z", "x", "v", "y"):
                actual = torch.from_numpy(values[at:at + numel].reshape(shape).copy())
                at += numel
                for kind, expected in self.expected.items():
                    reference = expected[i][which].double()
                    bar = BARS[self.dtype]
                    if which == "x" and kind == "package":
                        bar /= beta1  # the package extrapolates x from y and z
                    if which == "y" and self.dtype == "bfloat16":
                        bar = BFLOAT16_BAR
                    distance = (actual - reference).abs().max().item() / reference.abs().max().item()
                    shares[kind, which] = max(shares.get((kind, which), 0), distance / bar)
        assert at == len(values)
        return shares


class Parity(unittest.TestCase):
    def test_every_setting(self):
        world = 2 if LAUNCH.startswith("mpi") else 1
        averaged = LAUNCH.endswith("averaged")
        cases = []
        for dtype in BARS:
            for name, options in {**SETTINGS, **ENDS}.items():
                cases.append(Case(name, options, dtype, world, averaged, seed=len(cases) + 1000 * world))
        with tempfile.TemporaryDirectory() as root:
            for i, case in enumerate(cases):
                case.write(f"{root}/{i}", overlap=i % 3 != 2)
            command = [job.program("parity_program"), *(f"{root}/{i}" for i in range(len(cases)))]
            result = job.run([*(job.mpirun(world) if world > 1 else []), *command], timeout=200)
            self.assertEqual(result.code, 0, result.err)
            for i, case in enumerate(cases):
                shares = case.compare(f"{root}/{i}")
                print(f"{case.dtype:9} {case.name:19}", "  ".join(
                    f"{kind} {which} {share:.2f}" for (kind, which), share in sorted(shares.items())))
                for key, share in shares.items():
                    with self.subTest(f"{case.dtype} {case.name} {key}"):
                        self.assertLessEqual(share, 1.0)


if __name__ == "__main__":
    LAUNCH = sys.argv.pop(1)
    unittest.main(verbosity=2)
