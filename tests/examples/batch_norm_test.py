"""On the real images, x needs running statistics of its own: those of training cost accuracy, most of all while x and y
are still far apart."""
import os
import unittest

import job

FOLDER = "/usr/share/datasets/fashion-mnist"


class BatchNorm(unittest.TestCase):
    def test_statistics_of_x(self):
        command = [*job.mpirun(2), job.program("convnet"), "--data", FOLDER, "--steps", "30", "--lr", "0.03"]
        report, _ = job.train(command, timeout=200)
        print(report)
        self.assertGreater(report["accuracy_updated"], 0.65)
        self.assertGreater(report["accuracy_updated"], report["accuracy_stale"] + 0.02)


if __name__ == "__main__":
    if not os.path.isdir(FOLDER):
        job.skip(f"no {FOLDER}; it is in Debian's package dataset-fashion-mnist")
    unittest.main(verbosity=2)
