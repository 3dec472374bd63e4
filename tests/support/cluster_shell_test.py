"""Tests pass, whatever the shell is like that they are started from: run in one as on a cluster, in the midst of a job, with
a locale that writes numbers with commas, files that only their owner reads, and a home that nobody may write.

usage: cluster_shell_test.py
"""
import json
import os
import subprocess
import sys
import tempfile
import unittest

import job

SUPPORT = os.path.dirname(os.path.abspath(__file__))
OWN = os.path.join(SUPPORT, "own_environment")
BUILD = os.environ["ZEROSCHED_BUILD_DIR"]
LEFT_OVER = {"OMP_NUM_THREADS": "1", "OMP_PROC_BIND": "close", "OMP_PLACES": "cores", "MKL_NUM_THREADS": "1", "MKL_DYNAMIC": "FALSE",
             "SLURM_JOB_ID": "4711", "SLURM_NTASKS": "8", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "16",
             "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_TASKS_PER_NODE": "4(x2)", "SLURM_NODELIST": "node[01-02]",
             "RANK": "3", "WORLD_SIZE": "8", "LANG": "de_DE.UTF-8", "HOME": "/proc"}
# Of every kind: a program alone, ranks under mpirun with checkpoints, jobs that a script starts.
SOME = ("layout_test", "checkpoint_test.ranks_2", "session.auto_self", "session.crowded")


def comma_locale():
    """One of this machine's, if it has any."""
    names = subprocess.run(["locale", "-a"], capture_output=True, text=True).stdout.split()
    return next((name for name in names if name.startswith(("de_", "fr_", "nl_", "es_"))), "de_DE.UTF-8")


def environment():
    return {**os.environ, **LEFT_OVER, "LC_ALL": comma_locale()}


def in_cluster_shell(*command, **more):
    return subprocess.run(["sh", "-c", 'umask 077; exec "$@"', "sh", *command], env={**environment(), **more}, capture_output=True,
                          text=True)


class ClusterShell(unittest.TestCase):
    def test_what_a_test_gets(self):
        say = "import json, os; print(json.dumps([dict(os.environ), os.umask(0)]))"
        result = in_cluster_shell(OWN, sys.executable, "-c", say, ZEROSCHED_TEST_SETS="OMP_PLACES GTEST_FILTER", GTEST_FILTER="*")
        self.assertEqual(result.returncode, 0, result.stderr)
        got, umask = json.loads(result.stdout)
        left = {name for name in LEFT_OVER if got.get(name) == LEFT_OVER[name]}
        self.assertEqual(left, {"OMP_PLACES", "HOME"})
        self.assertEqual((got["LC_ALL"], got["GTEST_FILTER"], umask), ("C.UTF-8", "*", 0o022))
        self.assertNotIn("ZEROSCHED_TEST_SETS", got)

    def test_some_tests(self):
        shown = subprocess.run(["ctest", "--show-only=json-v1"], cwd=BUILD, capture_output=True, text=True, check=True)
        there = {test["name"] for test in json.loads(shown.stdout)["tests"]}
        some = [name for name in SOME if name in there]
        self.assertIn("layout_test", some)
        with tempfile.TemporaryDirectory() as folder:  # the logs in the build folder are of the run that this test is part of
            with open(os.path.join(folder, "CTestTestfile.cmake"), "w", encoding="utf-8") as file:
                file.write(f'subdirs("{BUILD}")\n')
            expression = "^(" + "|".join(name.replace(".", r"\.") for name in some) + ")$"
            result = in_cluster_shell("ctest", "--test-dir", folder, "--output-on-failure", "-R", expression, "-FA", ".*")
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertIn(f"100% tests passed, 0 tests failed out of {len(some)}", result.stdout)


if __name__ == "__main__":
    job.main()
