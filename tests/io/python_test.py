"""Files that Python reads and writes: exports, checkpoints as their manifest describes them, and checkpoints made from
what a Python trainer saved. Arithmetic goes on where the package schedulefree was."""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

import job

try:
    import safetensors.torch
    import schedulefree
    import torch
    import xxhash
except ImportError as error:
    job.skip(f"needs torch, schedulefree, safetensors and xxhash: {error}")

DIM, LAYERS, SEQ = 32, 2, 16


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.ln1, self.ln2 = torch.nn.LayerNorm(DIM), torch.nn.LayerNorm(DIM)
        self.qkv, self.proj = torch.nn.Linear(DIM, 3 * DIM), torch.nn.Linear(DIM, DIM)
        self.fc1, self.fc2 = torch.nn.Linear(DIM, 4 * DIM), torch.nn.Linear(4 * DIM, DIM)


class Gpt(torch.nn.Module):
    """The state of char_gpt's model."""
    def __init__(self):
        super().__init__()
        self.tok, self.pos = torch.nn.Embedding(256, DIM), torch.nn.Embedding(SEQ, DIM)
        self.blocks = torch.nn.ModuleList(Block() for _ in range(LAYERS))
        self.ln, self.head = torch.nn.LayerNorm(DIM), torch.nn.Linear(DIM, 256, bias=False)


class Folder(unittest.TestCase):
    def setUp(self):
        self.root = tempfile.mkdtemp(prefix="zerosched-test-")
        self.addCleanup(shutil.rmtree, self.root)

    def path(self, name):
        return os.path.join(self.root, name)


class Exported(Folder):
    def test_strict_load_of_x(self):
        job.train([*job.mpirun(3), job.program("char_gpt"), "--synthetic", "--steps", "3", "--dim", str(DIM), "--layers",
                   str(LAYERS), "--heads", "2", "--seq", str(SEQ), "--batch", "2", "--bucket-bytes", "5000",
                   "--checkpoint-dir", self.root, "--export", self.path("model.safetensors")])
        exported = safetensors.torch.load_file(self.path("model.safetensors"))
        model = Gpt()
        model.load_state_dict(exported, strict=True)

        folder = os.path.join(self.root, "latest")
        with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
            manifest = json.load(file)
        x = {p["name"]: torch.full((int(torch.tensor(p["shape"]).prod()),), float("nan")) for p in manifest["parameters"]}
        for name, listed in manifest["files"].items():
            self.assertEqual(os.path.getsize(os.path.join(folder, name)), listed["bytes"])
            tensors = safetensors.torch.load_file(os.path.join(folder, name))
            self.assertEqual(set(tensors), set(listed["xxh3"]))
            for key, tensor in tensors.items():
                self.assertEqual(xxhash.xxh3_64_hexdigest(tensor.view(-1).view(torch.uint8).numpy().tobytes()),
                                 listed["xxh3"][key])
                if key.startswith("x:"):
                    _, span, parameter = key.split(":", 2)
                    begin, end = map(int, span.split("-"))
                    x[parameter][begin:end] = tensor
        self.assertEqual(set(x), set(exported))
        for name, tensor in exported.items():
            self.assertTrue(torch.equal(x[name], tensor.reshape(-1)), name)


def parameters():
    """As tests/engine/toy.cpp makes them, and as checkpoint_program trains them."""
    shapes = [(7,), (3, 5), (), (71,), (0, 4), (100, 3), (1,), (2, 1, 2), (7,), (33,), (40, 25)]
    values = [torch.randn(shape, generator=torch.Generator().manual_seed(1000 + i), dtype=torch.float64).float()
              for i, shape in enumerate(shapes)]
    return torch.nn.ParameterDict({f"p{i}": torch.nn.Parameter(value) for i, value in enumerate(values)})


def convert(state, folder):
    converter = os.path.join(os.path.dirname(__file__), "..", "..", "launch", "convert_schedulefree.py")
    return subprocess.run([sys.executable, "-B", converter, state, folder], check=False, timeout=120, capture_output=True,
                          text=True)


class Converted(Folder):
    def train(self, model, optimizer, first, end):
        for step in range(first, end):
            for name, parameter in model.items():
                generator = torch.Generator().manual_seed(step * 131 * 1009 + int(name[1:]) + 1)
                parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).float()
            optimizer.step()

    def check(self, in_eval_mode):
        model = parameters()
        optimizer = schedulefree.AdamWScheduleFree(list(model.values()), lr=0.01, betas=(0.9, 0.95), weight_decay=0.1,
                                                   warmup_steps=4, foreach=False)
        optimizer.train()
        self.train(model, optimizer, 0, 5)
        if in_eval_mode:
            optimizer.eval()
        torch.save({"class": type(optimizer).__name__, "optimizer": optimizer.state_dict(), "model": model.state_dict(),
                    "parameters": [name for name, _ in model.named_parameters()], "frozen": []}, self.path("state.pt"))
        optimizer.train()
        converted = convert(self.path("state.pt"), self.path("converted"))
        self.assertEqual(converted.returncode, 0, converted.stderr)
        result = job.run([*job.mpirun(2), job.program("checkpoint_program"), "--load", self.path("converted"), "--step",
                          "5", "--steps", "20", "--dump", self.path("dump.json")])
        self.assertEqual(result.code, 0, result.err)
        self.train(model, optimizer, 5, 25)
        with open(self.path("dump.json"), encoding="utf-8") as file:
            dumped = json.load(file)
        for name, parameter in model.items():
            if parameter.numel() == 0:
                continue
            state = optimizer.state[parameter]
            for which, expected in (("y", parameter), ("z", state["z"]), ("v", state["exp_avg_sq"])):
                expected = expected.detach().double().reshape(-1)
                error = (torch.tensor(dumped[which][name], dtype=torch.float64) - expected).abs().max()
                self.assertLessEqual(float(error), 4e-6 * float(expected.abs().max()), f"{which} of {name}")

    def test_saved_in_train_mode(self):
        self.check(in_eval_mode=False)

    def test_saved_in_eval_mode(self):
        self.check(in_eval_mode=True)


class ConverterAndTheFolderAbove(Folder):
    def save(self, **more):
        weight = torch.nn.Parameter(torch.zeros(3))
        optimizer = schedulefree.SGDScheduleFree([weight], lr=0.1, foreach=False)
        optimizer.train()
        weight.grad = torch.ones(3)
        optimizer.step()
        torch.save({"class": "SGDScheduleFree", "optimizer": optimizer.state_dict(), "model": {"w": weight.detach()},
                    "parameters": ["w"], **more}, self.path("state.pt"))
        return self.path("state.pt")

    def test_nothing_of_anybody_else_is_deleted(self):
        os.makedirs(self.path("converted.partial"))
        with open(self.path("converted.partial/notes"), "w", encoding="utf-8") as file:
            file.write("mine")
        self.assertEqual(convert(self.save(), self.path("converted")).returncode, 0)
        self.assertEqual(sorted(os.listdir(self.root)), ["converted", "converted.partial", "state.pt"])
        self.assertEqual(os.listdir(self.path("converted.partial")), ["notes"])
        mask = os.umask(0)
        os.umask(mask)
        self.assertEqual(os.stat(self.path("converted")).st_mode & 0o777, 0o777 & ~mask)
        again = convert(self.path("state.pt"), self.path("converted"))
        self.assertIn("is there already", again.stderr)
        self.assertEqual(again.returncode, 1)
        os.symlink("nowhere", self.path("link"))
        self.assertIn("is there already", convert(self.path("state.pt"), self.path("link")).stderr)

    def test_what_fails_leaves_nothing(self):
        # A type that safetensors does not have.
        failed = convert(self.save(model={"w": torch.zeros(3), "odd": torch.zeros(2, dtype=torch.complex128)}),
                         self.path("new/converted"))
        self.assertNotEqual(failed.returncode, 0)
        self.assertEqual(os.listdir(self.path("new")), [])


if __name__ == "__main__":
    unittest.main(verbosity=2)
