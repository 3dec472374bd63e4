"""On the real images, the wrapped trainer is about as accurate as the trainer it was made from, or better."""
import os
import unittest

import job

FOLDER = "/usr/share/datasets/fashion-mnist"


class FashionMnist(unittest.TestCase):
    def test_wrapped_is_as_accurate(self):
        accuracy = {}
        for name in ("data_parallel", "wrapped"):
            command = [*job.mpirun(2), job.program(name), "--data", FOLDER, "--steps", "300"]
            report, _ = job.train(command, timeout=150)
            accuracy[name] = report["test_accuracy"]
        print(accuracy)
        self.assertGreater(accuracy["data_parallel"], 0.8)
        self.assertGreater(accuracy["wrapped"], accuracy["data_parallel"] - 0.01)


if __name__ == "__main__":
    if not os.path.isdir(FOLDER):
        job.skip(f"no {FOLDER}; it is in Debian's package dataset-fashion-mnist")
    unittest.main(verbosity=2)
