"""What ctest makes of test programs: failed if a case fails or the program dies, whatever was skipped before; skipped if
a case is skipped on any rank and none fails; passed otherwise. And the reasons of skips get into the summary.

usage: harness_test.py PROGRAM [PROGRAM_UNDER_MPIRUN]     (in builds with MPI)
"""
import json
import os
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

import job

ALONE, MPI = sys.argv[1], "".join(sys.argv[2:])
SOURCE, BUILD = os.environ["ZEROSCHED_SOURCE_DIR"], os.environ["ZEROSCHED_BUILD_DIR"]
REASON = "needs a moon"
EXPECTED = {"Passes": "passed", "Skips": "skipped", "Fails": "failed", "Crashes": "failed", "Passes+Skips": "skipped",
            "Passes+Fails": "failed", "Skips+Fails": "failed", "Skips+Crashes": "failed"}
SCRIPT = """
import unittest
import job

class Case(unittest.TestCase):
    def test_0_Passes(self):
        pass
    def test_1_Skips(self):
        self.skipTest("needs a moon")
    def test_2_Fails(self):
        self.fail("expected")
    def test_3_Crashes(self):
        import os
        os.kill(os.getpid(), 9)

job.main()
"""


def ctest(folder, tests):
    """Runs `tests` (name -> command, environment) as tests/CMakeLists.txt registers them: name -> what ctest says. And
    the lines of ctest with those that tests/run puts in."""
    with open(os.path.join(folder, "CTestTestfile.cmake"), "w", encoding="utf-8") as file:
        for name, (command, environment) in tests.items():
            words = " ".join(f"[==[{word}]==]" for word in command)
            file.write(f"add_test([==[{name}]==] {words})\nset_tests_properties([==[{name}]==] PROPERTIES "
                       f'SKIP_RETURN_CODE {job.SKIPPED} TIMEOUT 60 ENVIRONMENT "{environment}")\n')
    printed = subprocess.run(["ctest", "--output-junit", "result.xml"], cwd=folder, capture_output=True, text=True).stdout
    summary = subprocess.run(
        ["awk", "-v", f"last={folder}/Testing/Temporary/LastTest.log", "-f", f"{SOURCE}/tests/support/summary.awk"],
        input=printed, capture_output=True, text=True, check=True).stdout.splitlines()
    said = {}
    for case in xml.etree.ElementTree.parse(os.path.join(folder, "result.xml")).iter("testcase"):
        skipped = case.find("skipped") is not None
        said[case.get("name")] = "passed" if case.get("status") == "run" else "skipped" if skipped else "failed"
    return said, summary


class Harness(unittest.TestCase):
    def check(self, commands, environment=""):
        """`commands`: for some of EXPECTED."""
        with tempfile.TemporaryDirectory() as folder:
            said, summary = ctest(folder, {cases: (command, environment) for cases, command in commands.items()})
        self.assertEqual(said, {cases: EXPECTED[cases] for cases in commands}, "\n".join(summary))
        told = [line for line in summary if line.startswith("SKIPPED ")]
        for cases in commands:
            if EXPECTED[cases] == "skipped":
                self.assertIn(f"SKIPPED {cases}: {REASON}", told, summary)
        self.assertFalse([line for line in told if "Skips" not in line])

    @staticmethod
    def filtered(command, some=EXPECTED):
        return {cases: [*command, "--gtest_filter=" + ":".join(f"Case.{case}" for case in cases.split("+"))]
                for cases in some}

    def test_one_process(self):
        self.check(self.filtered([ALONE]))

    @unittest.skipIf(not MPI, "built without MPI (ZEROSCHED_MPI)")
    def test_ranks(self):
        some = ("Passes", "Passes+Skips", "Skips+Fails", "Skips+Crashes")  # a job takes two seconds
        for ranks, environment in ((1, ""), (2, "HARNESS_RANK=0"), (2, "HARNESS_RANK=1")):
            with self.subTest(ranks=ranks, environment=environment):
                self.check(self.filtered([*job.mpirun(ranks, "--allow-run-as-root"), MPI], some), environment)

    @unittest.skipIf(not MPI, "built without MPI (ZEROSCHED_MPI)")
    def test_every_rank_exits_with_the_same_code(self):
        for case, expected in (("Skips", job.SKIPPED), ("Fails", 1)):
            # The shell ends well, so that mpirun does not end the other ranks.
            program = f'"{MPI}" --gtest_filter=Case.{case} >&2; echo "code $?"'
            result = job.run([*job.mpirun(3), "sh", "-c", program], environment=dict(os.environ, HARNESS_RANK="1"))
            self.assertEqual(result.out.splitlines(), 3 * [f"code {expected}"], result)

    def test_python(self):
        with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
            file.write(SCRIPT)
            file.flush()
            self.check({cases: [sys.executable, "-B", file.name, *(word for case in cases.split("+") for word in ("-k", case))]
                        for cases in EXPECTED}, f"PYTHONPATH={SOURCE}/tests/support")

    def test_no_test_is_skipped_for_what_it_prints(self):
        """A failure that prints the word would count as skipped."""
        shown = subprocess.run(["ctest", "--show-only=json-v1"], cwd=BUILD, capture_output=True, text=True, check=True)
        tests = {test["name"]: {item["name"]: item["value"] for item in test.get("properties", [])}
                 for test in json.loads(shown.stdout)["tests"]}
        self.assertGreater(len(tests), 20)
        for name, properties in tests.items():
            self.assertNotIn("SKIP_REGULAR_EXPRESSION", properties, name)
        self.assertEqual(tests["layout_test"]["SKIP_RETURN_CODE"], job.SKIPPED)


if __name__ == "__main__":
    job.main(sys.argv[:1])
