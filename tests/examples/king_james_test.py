"""The demo's training: on the King James Bible, x ends below 2 nats per byte of text it has not seen."""
import os
import shutil
import subprocess
import tempfile
import unittest

import job

BIBLE = shutil.which("bible") or "/usr/games/bible"


class KingJames(unittest.TestCase):
    def test_eval_loss(self):
        with tempfile.TemporaryDirectory() as folder:
            text = folder + "/king_james.txt"
            with open(text, "wb") as file:
                subprocess.run([BIBLE, "-f", "gen1:1-rev22:21"], stdout=file, check=True, timeout=60)
            command = [*job.mpirun(2), job.program("char_gpt"), "--data", text, "--steps", "600"]
            report, _ = job.train(command, timeout=450)
        print({key: report[key] for key in ("eval_loss_x", "eval_loss_y", "last_loss")})
        self.assertLess(report["eval_loss_x"], 2.0)
        self.assertGreater(report["eval_loss_y"], 1.0)  # y was evaluated too


if __name__ == "__main__":
    if not os.path.exists(BIBLE):
        job.skip("no bible program; it is in Debian's packages bible-kjv and bible-kjv-text")
    unittest.main(verbosity=2)
