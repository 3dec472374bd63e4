"""The trainer of wrap_existing, as it was and wrapped, on made-up images in the dataset's format."""
import os
import random
import shutil
import struct
import tempfile
import unittest

import job


def write_images(folder, prefix, count, generator):
    """Images of class k: noise with rows 2k+4 and 2k+5 bright."""
    labels = bytes(generator.randrange(10) for _ in range(count))
    with open(f"{folder}/{prefix}-images-idx3-ubyte", "wb") as file:
        file.write(struct.pack(">4i", 0x803, count, 28, 28))
        for label in labels:
            image = bytearray(value & 0x7F for value in generator.randbytes(28 * 28))
            image[28 * (2 * label + 4):28 * (2 * label + 6)] = b"\xff" * 56
            file.write(image)
    with open(f"{folder}/{prefix}-labels-idx1-ubyte", "wb") as file:
        file.write(struct.pack(">2i", 0x801, count) + labels)


class WrapExisting(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp()
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        generator = random.Random(1)
        write_images(cls.folder, "train", 2048, generator)
        write_images(cls.folder, "t10k", 501, generator)

    def train(self, name, ranks, *arguments):
        launcher = job.mpirun(ranks) if ranks > 1 else []
        command = [*launcher, job.program(name), "--data", self.folder, "--batch", "16"]
        report, _ = job.train(command + list(arguments))
        self.assertEqual(report["world_size"], ranks)
        return report

    def test_both_learn(self):
        for name in ("data_parallel", "wrapped"):
            for ranks in (1, 2, 3):
                with self.subTest(name, ranks=ranks):
                    report = self.train(name, ranks, "--epochs", "3")
                    self.assertEqual(report["steps"], 3 * (2048 // (16 * ranks)))
                    self.assertGreater(report["test_accuracy"], 0.95)

    def test_same_job_gives_same_bits(self):
        first, second = (self.train("wrapped", 2, "--steps", "30") for _ in range(2))
        self.assertEqual(first["steps"], 30)
        for key in ("last_loss", "test_accuracy"):
            self.assertEqual(first[key], second[key], key)


if __name__ == "__main__":
    unittest.main(verbosity=2)
