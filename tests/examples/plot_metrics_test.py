"""plot_metrics.py turns metrics into a PNG."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

import job

PYTHON = os.environ.get("ZEROSCHED_PYTHON", sys.executable)
SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../examples/char_gpt/plot_metrics.py")


class PlotMetrics(unittest.TestCase):
    def draw(self, lines):
        with tempfile.TemporaryDirectory() as folder:
            with open(folder + "/metrics.jsonl", "w") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
            command = [PYTHON, SCRIPT, folder + "/metrics.jsonl", folder + "/curve.png"]
            result = subprocess.run(command, capture_output=True, timeout=100)
            self.assertEqual(result.returncode, 0, result.stderr)
            with open(folder + "/curve.png", "rb") as image:
                return image.read()

    def test_png(self):
        lines = [{"step": step, "loss": 5 / step} for step in range(1, 21)]
        without_evaluation = self.draw(lines)
        for step in (10, 20):
            lines[step - 1].update(eval_loss_x=4 / step, eval_loss_y=5 / step)
        image = self.draw(lines)
        self.assertTrue(image.startswith(b"\x89PNG"))
        self.assertNotEqual(image, without_evaluation)


if __name__ == "__main__":
    if subprocess.run([PYTHON, "-c", "import matplotlib"], capture_output=True, timeout=100).returncode != 0:
        job.skip(f"{PYTHON} has no matplotlib")
    unittest.main(verbosity=2)
