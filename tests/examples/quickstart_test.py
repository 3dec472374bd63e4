"""README's first program is examples/quickstart to the letter, and trains."""
import os
import re
import shutil
import tempfile
import unittest

import job

SOURCE = os.environ["ZEROSCHED_SOURCE_DIR"]


class Quickstart(unittest.TestCase):
    def test_is_the_program_in_readme(self):
        with open(os.path.join(SOURCE, "examples/quickstart/main.cpp"), encoding="utf-8") as file:
            program = file.read()
        self.assertLessEqual(program.count("\n"), 60)
        with open(os.path.join(SOURCE, "README.md"), encoding="utf-8") as file:
            shown = re.search(r"```cpp\n(.*?)```", file.read(), re.DOTALL)
        self.assertIsNotNone(shown, "README shows no program")
        self.assertEqual(shown.group(1), program)

    def test_trains(self):
        for ranks in (1, 2):
            with self.subTest(ranks=ranks):
                folder = tempfile.mkdtemp()
                self.addCleanup(shutil.rmtree, folder)
                command = [*(job.mpirun(ranks) if ranks > 1 else []), job.program("quickstart")]
                result = job.run(command, cwd=folder)
                self.assertEqual(result.code, 0, result)
                accuracy = re.fullmatch(r"accuracy ([0-9.]+)\n", result.out)
                self.assertIsNotNone(accuracy, result)
                self.assertGreater(float(accuracy.group(1)), 0.9)
                self.assertTrue(os.path.exists(f"{folder}/run/latest/manifest.json"))
                self.assertTrue(os.path.exists(f"{folder}/run/model.safetensors"))


if __name__ == "__main__":
    job.main()
