"""Bad input to the examples: exit code 2, alone and under mpirun, and one message that names the thing."""
import concurrent.futures
import os
import shutil
import tempfile
import unittest

import job

# Arguments ({text}: a readable text, {folder}: an empty folder) and what the message must name.
CHAR_GPT = [
    ("", "--data"),
    ("--data {folder}/missing.txt", "missing.txt"),
    ("--data {folder}", "{folder}"),
    ("--data {text} --no-such-option", "--no-such-option"),
    ("--data {text} stray", "stray"),
    ("--data {text} --synthetic", "--synthetic"),
    ("--data {text} --seq 60000", "--seq 60000"),
    ("--data {text} --dim 0", "--dim"),
    ("--data {text} --dim -128", "--dim"),
    ("--data {text} --dim many", "--dim"),
    ("--data {text} --dim 99999999999999999999", "--dim"),
    ("--data {text} --dim 100 --heads 3", "--heads 3"),
    ("--data {text} --check-ready", "--check-ready requires --overlap-forward"),
    ("--data {text} --layers 0", "--layers"),
    ("--data {text} --batch 0", "--batch"),
    ("--data {text} --steps 0", "--steps"),
    ("--data {text} --steps 1.5", "--steps"),
    ("--data {text} --lr 0", "--lr"),
    ("--data {text} --lr nan", "--lr"),
    ("--data {text} --beta1 1.5", "--beta1"),
    ("--data {text} --optimizer adamw --beta1 1", "beta1"),
    ("--data {text} --beta2 1", "--beta2"),
    ("--data {text} --weight-decay -1", "--weight-decay"),
    ("--data {text} --warmup-steps -1", "--warmup-steps"),
    ("--data {text} --optimizer adagrad", "adagrad"),
    ("--data {text} --dtype int8", "int8"),
    ("--data {text} --device tpu", "tpu"),
    ("--data {text} --device cuda", "the device is cuda"),  # the tests of the CPU see no GPU
    ("--data {text} --comm gloo", "gloo"),
    ("--data {text} --comm nccl", "needs a GPU"),
    ("--data {text} --device cpu --comm nccl", "the device is the CPU"),
    ("--data {text} --threads 0", "--threads"),
    ("--data {text} --seed -1", "--seed"),
    ("--data {text} --timeout 0", "--timeout"),
    ("--data {text} --dropout 1", "--dropout"),
    ("--data {text} --resume", "--checkpoint-dir"),
    ("--data {text} --checkpoint-every 5", "--checkpoint-dir"),
    ("--data {text} --metrics {folder}/missing/metrics.jsonl", "missing/metrics.jsonl"),
]
TRAINER = [
    ("--data {folder}/missing", "missing"),
    ("--data {folder}", "train-images-idx3-ubyte"),
    ("--data {damaged}", "train-images-idx3-ubyte"),
    ("--no-such-option", "--no-such-option"),
    ("--batch 0", "--batch"),
    ("--epochs 0", "--epochs"),
    ("--lr -1", "--lr"),
    ("--threads none", "--threads"),
    ("--seed -1", "--seed"),
]


class BadInput(unittest.TestCase):
    def setUp(self):
        self.root = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.root)
        self.names = {name: os.path.join(self.root, name) for name in ("text", "folder", "damaged")}
        with open(self.names["text"], "w") as text:
            text.write("In the beginning was a text. " * 400)
        os.mkdir(self.names["folder"])
        os.mkdir(self.names["damaged"])
        with open(self.names["damaged"] + "/train-images-idx3-ubyte", "wb") as damaged:
            damaged.write(b"\0\0\x08\x03")

    def message(self, result, named):
        """The only line of a refused job that speaks of `named`."""
        self.assertEqual(result.code, 2, result)
        messages = [line for line in result.err.splitlines() if named in line]
        self.assertEqual(len(messages), 1, result)
        return messages[0]

    def check(self, name, table):
        cases = []
        for arguments, named in table:
            command = [job.program(name), *arguments.format(**self.names).split()]
            for launcher in (job.mpirun(2), []):
                cases.append((launcher + command, named.format(**self.names)))
        with concurrent.futures.ThreadPoolExecutor(4) as pool:  # the jobs mostly wait for each other to end
            results = pool.map(lambda case: job.run(case[0], timeout=60), cases)
            for (command, named), result in zip(cases, results):
                with self.subTest(" ".join(command)):
                    self.assertTrue(self.message(result, named).startswith(f"{name}: "))

    def test_char_gpt(self):
        self.check("char_gpt", CHAR_GPT)

    def test_data_parallel(self):
        self.check("data_parallel", TRAINER)

    def test_wrapped(self):
        self.check("wrapped", TRAINER)

    def test_convnet(self):
        self.check("convnet", TRAINER[:4])  # it reads its options and images as the two above do

    def test_one_rank_misses_its_file(self):
        char_gpt = job.program("char_gpt")
        command = job.mpirun(1) + [char_gpt, "--data", self.names["text"], ":",
                                   "-n", "1", char_gpt, "--data", self.root + "/missing.txt"]
        self.assertIn("on rank 1: ", self.message(job.run(command), "missing.txt"))

    def test_loss_that_diverges_ends_the_job(self):
        options = "--dim 32 --layers 1 --steps 50 --lr 1e38 --warmup-steps 0".split()
        result = job.run([*job.mpirun(2), job.program("char_gpt"), "--data", self.names["text"], *options])
        self.assertEqual(result.code, 70, result.err)
        self.assertIn("lower --lr", result.err)

    def test_help(self):
        for name in ("char_gpt", "data_parallel", "wrapped"):
            result = job.run(job.mpirun(2) + [job.program(name), "--help"])
            self.assertEqual(result.code, 0, result.err)
            self.assertEqual(result.out.count("--lr"), 1, result.out)


if __name__ == "__main__":
    unittest.main(verbosity=2)
