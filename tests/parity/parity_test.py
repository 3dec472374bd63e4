"""zerosched against the Python package schedulefree and torch.optim, live: random groups, options, shapes, gradients.

usage: parity_test.py alone|alone_averaged|mpi|mpi_averaged

Measure: max|difference| / max|reference| per tensor, after the last step. Where the package has no answer (beta1 = 0
and beta1 = 1) the reference is Plain below, which every other case is compared with too.
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

ADAM = dict(lr=0.0025, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
AVERAGE = dict(r=0.0, weight_lr_power=2.0)
DEFAULTS = {
    "AdamWScheduleFree": dict(ADAM, warmup_steps=0, **AVERAGE),
    "AdamWScheduleFreePaper": dict(ADAM, warmup_steps=0, **AVERAGE),
    "SGDScheduleFree": dict(lr=1.0, momentum=0.9, weight_decay=0.0, warmup_steps=0, **AVERAGE),
    "RAdamScheduleFree": dict(ADAM, silent_sgd_phase=True, **AVERAGE),
    "AdamW": dict(ADAM, lr=1e-3, weight_decay=1e-2),
    "SGD": dict(lr=1e-3, momentum=0.0, weight_decay=0.0, nesterov=False),
}
STATE = {"AdamW": ("x", "m", "v", "y"), "SGD": ("x", "m", "y"), "SGDScheduleFree": ("z", "x", "y")}
STATE_OF_OTHERS = ("z", "x", "v", "y")

# Settings of the first group; the second differs where a random draw says so.
ADAM_SETTINGS = {
    "defaults": {},
    "decay_and_warmup": dict(lr=0.01, weight_decay=0.1, warmup_steps=50),
    "long_warmup": dict(lr=0.02, warmup_steps=400, betas=(0.95, 0.99)),
    "polynomial_weights": dict(r=1.5, weight_lr_power=1.0, lr=0.005, weight_decay=0.01),
    "equal_weights": dict(weight_lr_power=0.0, betas=(0.5, 0.9), eps=1e-6),
    "large_eps": dict(eps=0.1, lr=0.05, betas=(0.98, 0.95), warmup_steps=10),
    "small_beta1": dict(betas=(0.1, 0.99), lr=0.003, weight_decay=0.05),
    "polyak_ruppert": dict(betas=(0.0, 0.99), lr=0.003, weight_decay=0.05, warmup_steps=20),
    "primal": dict(betas=(1.0, 0.99), lr=0.003, weight_decay=0.05, weight_lr_power=0.0),
}
SETTINGS = {
    "AdamWScheduleFree": ADAM_SETTINGS,
    "AdamWScheduleFreePaper": {name: ADAM_SETTINGS[name] for name in (
        "defaults", "decay_and_warmup", "polynomial_weights", "polyak_ruppert", "primal")},
    "SGDScheduleFree": {
        "defaults": dict(lr=0.1),
        "decay_and_warmup": dict(lr=0.2, momentum=0.95, weight_decay=0.01, warmup_steps=50),
        "polynomial_weights": dict(lr=0.1, momentum=0.6, r=1.0, weight_lr_power=0.0),
        "polyak_ruppert": dict(lr=0.1, momentum=0.0, weight_decay=0.01),
        "primal": dict(lr=0.1, momentum=1.0, weight_lr_power=0.0),
    },
    "RAdamScheduleFree": {
        "defaults": {},
        "loud_sgd_phase": dict(silent_sgd_phase=False, lr=0.01, weight_decay=0.1),
        "small_betas": dict(betas=(0.6, 0.9), lr=0.01, weight_decay=0.02, r=0.5),
        "never_adaptive": dict(betas=(0.9, 0.5), silent_sgd_phase=False, lr=0.05),
        "polyak_ruppert": dict(betas=(0.0, 0.99), lr=0.003),
        "primal": dict(betas=(1.0, 0.99), lr=0.003, weight_decay=0.05),
    },
    "AdamW": {"defaults": {}, "without_decay": dict(lr=0.01, weight_decay=0.0, betas=(0.8, 0.95), eps=1e-6)},
    "SGD": {
        "defaults": {},
        "momentum": dict(lr=0.05, momentum=0.9, weight_decay=0.01),
        "nesterov": dict(lr=0.05, momentum=0.8, weight_decay=0.01, nesterov=True),
    },
}


def beta1_of(options):
    return options["betas"][0] if "betas" in options else options["momentum"]


class Plain:
    """The Schedule-Free optimizers for one group, line by line (arXiv 2405.15682), in float64."""

    def __init__(self, optimizer, parameters, options):
        self.optimizer, self.options, self.k, self.weight_sum, self.lr_max = optimizer, options, 0, 0.0, -1.0
        self.z, self.x, self.y = ([p.detach().double().clone() for p in parameters] for _ in range(3))
        self.v = [torch.zeros_like(z) for z in self.z]

    def step(self, gradients, lr):
        o, t = self.options, self.k + 1
        beta1, beta2 = beta1_of(o), o.get("betas", (0, 0))[1]
        correction = 1 - beta2 ** t
        adaptive = "betas" in o
        if self.k < o.get("warmup_steps", 0):
            lr *= t / o["warmup_steps"]
        if self.optimizer == "AdamWScheduleFreePaper":
            lr *= math.sqrt(correction)
            correction = 1
        if self.optimizer == "RAdamScheduleFree":
            rho_inf = 2 / (1 - beta2) - 1
            rho = rho_inf - 2 * t * beta2 ** t / (1 - beta2 ** t)
            adaptive = rho > 4
            if adaptive:
                lr *= math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
            elif o["silent_sgd_phase"]:
                lr = 0.0
        self.lr_max = max(self.lr_max, lr)
        weight = t ** o["r"] * self.lr_max ** o["weight_lr_power"]
        self.weight_sum += weight
        c = weight / self.weight_sum if self.weight_sum else 0.0
        for i, g in enumerate(gradients):
            if g is None:
                continue
            g = g.double()
            self.v[i] = beta2 * self.v[i] + (1 - beta2) * g * g
            u = g / ((self.v[i] / correction).sqrt() + o["eps"]) if adaptive else g
            self.z[i] = self.z[i] - lr * (u + o["weight_decay"] * self.y[i])
            self.x[i] = (1 - c) * self.x[i] + c * self.z[i]
            self.y[i] = beta1 * self.x[i] + (1 - beta1) * self.z[i]
        self.k += 1

    def state(self):
        return [dict(z=z, x=x, v=v, y=y) for z, x, v, y in zip(self.z, self.x, self.v, self.y)]


class Package:
    """The optimizers of the package schedulefree, or AdamW and SGD of torch, for one group."""

    def __init__(self, optimizer, parameters, options, foreach):
        self.parameters = [p.detach().clone().requires_grad_() for p in parameters]
        self.schedule_free = optimizer not in ("AdamW", "SGD")
        source = schedulefree if self.schedule_free else torch.optim
        self.optimizer = getattr(source, optimizer)(self.parameters, foreach=foreach, **options)
        if self.schedule_free:
            self.optimizer.train()

    def step(self, gradients, lr):
        for parameter, gradient in zip(self.parameters, gradients):
            parameter.grad = None if gradient is None else gradient.clone()
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()

    def state(self):
        y = [p.detach().clone() for p in self.parameters]
        if self.schedule_free:
            self.optimizer.eval()
        result = []
        for parameter, y_i in zip(self.parameters, y):
            state, zeros = self.optimizer.state[parameter], torch.zeros_like(y_i)
            # Without momentum torch's SGD keeps nothing, and there is nothing to compare with.
            result.append(dict(z=state.get("z", y_i), x=parameter.detach(), y=y_i, v=state.get("exp_avg_sq", zeros),
                               m=state.get("exp_avg", state.get("momentum_buffer"))))
        return result


class Case:
    """One random job: what the program reads, and the references' results."""

    def __init__(self, optimizer, name, dtype, world, averaged, seed):
        self.optimizer, self.name, self.dtype, self.averaged = optimizer, name, dtype, averaged
        self.state = STATE.get(optimizer, STATE_OF_OTHERS)
        generator = torch.Generator().manual_seed(seed)
        parameter_dtype = getattr(torch, dtype)
        # The state of bfloat16 parameters is float32, which the package does not offer: it gets float32 parameters.
        state_dtype = torch.float32 if dtype == "bfloat16" else parameter_dtype
        uniform = lambda: torch.rand((), generator=generator, dtype=torch.float64).item()
        normal = lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(parameter_dtype)

        first = dict(DEFAULTS[optimizer], **SETTINGS[optimizer][name])
        second = dict(first, lr=first["lr"] * (0.5 + uniform()),
                      weight_decay=first["weight_decay"] + (0.02 if uniform() < 0.5 else 0))
        if "warmup_steps" in first:
            second["warmup_steps"] += int(20 * uniform())
        cut = 1 + int(uniform() * (len(SHAPES) - 1))
        self.groups = [(first, SHAPES[:cut]), (second, SHAPES[cut:])]
        # Tensors of one element start far from zero: one that happens to end near it has no relative distance to speak of.
        self.initial = [normal(shape) + (10 if math.prod(shape) == 1 else 0) for shape in SHAPES]
        foreach = uniform() < 0.5

        references = {}
        if optimizer not in ("AdamW", "SGD"):
            references["plain"] = lambda p, o: Plain(optimizer, p, o)
        if name not in ("polyak_ruppert", "primal"):  # where the package divides by zero or cannot leave train mode
            references["package"] = lambda p, o: Package(optimizer, p, o, foreach)
        slices = [slice(0, cut), slice(cut, len(SHAPES))]
        start = [tensor.to(state_dtype) for tensor in self.initial]
        runs = {kind: [make(start[s], o) for s, (o, _) in zip(slices, self.groups)] for kind, make in references.items()}

        self.steps, self.gradients = [], []
        sources = 1 if averaged else world
        for step in range(STEPS):
            scale = math.exp(2 * uniform() - 3)
            # A step in which some parameters are not used, by some ranks or by all. torch's AdamW corrects bias by the
            # steps of each parameter.
            drop = uniform() < 0.2 and optimizer != "AdamW"
            per_source = [[None if drop and uniform() < 0.4 else normal(shape) * scale for shape in SHAPES]
                          for _ in range(sources)]
            lr = [o["lr"] * (1.0 if step < 100 else 0.7 + 0.3 * math.cos(step)) for o, _ in self.groups]
            self.steps.append(dict(lr=lr, present=["".join("0" if g is None else "1" for g in gradients)
                                                   for gradients in per_source]))
            self.gradients += [g for gradients in per_source for g in gradients if g is not None]
            mean = []
            for of_ranks in zip(*per_source):
                there = [g for g in of_ranks if g is not None]
                mean.append((sum(there[1:], there[0]) / sources).to(state_dtype) if there else None)
            for of_groups in runs.values():
                for s, of_group, group_lr in zip(slices, of_groups, lr):
                    of_group.step(mean[s], group_lr)
        self.expected = {kind: [state for of_group in of_groups for state in of_group.state()]
                         for kind, of_groups in runs.items()}

    def write(self, folder, overlap):
        os.mkdir(folder)
        with open(folder + "/case.json", "w") as file:
            groups = [dict(options=options, shapes=shapes) for options, shapes in self.groups]
            json.dump(dict(optimizer=self.optimizer, state=self.state, dtype=self.dtype, averaged=self.averaged, overlap=overlap, bucket_bytes=400,
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
            for which in self.state:
                actual = torch.from_numpy(values[at:at + numel].reshape(shape).copy())
                at += numel
                for kind, expected in self.expected.items():
                    if expected[i].get(which) is None:
                        continue
                    reference = expected[i][which].double()
                    bar = BARS[self.dtype]
                    if which == "x" and kind == "package" and "z" in self.state:
                        bar /= beta1_of(self.groups[0][0])  # the package extrapolates x from y and z
                    if which == "y" and self.dtype == "bfloat16":
                        bar = BFLOAT16_BAR
                    size = reference.abs().max().item()
                    distance = (actual - reference).abs().max().item() / (size or 1)
                    shares[kind, which] = max(shares.get((kind, which), 0), distance / bar)
        assert at == len(values)
        return shares


class Parity(unittest.TestCase):
    def test_every_setting(self):
        world = 2 if LAUNCH.startswith("mpi") else 1
        averaged = LAUNCH.endswith("averaged")
        cases = []
        for dtype in BARS:
            for optimizer, settings in SETTINGS.items():
                for name in settings:
                    cases.append(Case(optimizer, name, dtype, world, averaged, seed=len(cases) + 1000 * world))
        with tempfile.TemporaryDirectory() as root:
            for i, case in enumerate(cases):
                case.write(f"{root}/{i}", overlap=i % 3 != 2)
            command = [job.program("parity_program"), *(f"{root}/{i}" for i in range(len(cases)))]
            result = job.run([*(job.mpirun(world) if world > 1 else []), *command], timeout=200)
            self.assertEqual(result.code, 0, result.err)
            for i, case in enumerate(cases):
                shares = case.compare(f"{root}/{i}")
                print(f"{case.dtype:9} {case.optimizer:23} {case.name:19}", "  ".join(
                    f"{kind} {which} {share:.2f}" for (kind, which), share in sorted(shares.items())))
                for key, share in shares.items():
                    with self.subTest(f"{case.dtype} {case.optimizer} {case.name} {key}"):
                        self.assertLessEqual(share, 1.0)


if __name__ == "__main__":
    LAUNCH = sys.argv.pop(1)
    unittest.main(verbosity=2)
