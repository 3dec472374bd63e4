"""What becomes of steps whose programs end well, fail, crash, hang, leave processes behind and are skipped."""
import contextlib
import io
import json
import os
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import job  # noqa: E402
import processes  # noqa: E402
import runner  # noqa: E402


def shell(script, **options):
    """A step that runs a script."""
    return lambda do: {"output": do.run(["sh", "-c", script], dict(os.environ), **options)}


class Scratch(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def run_all(self, *steps, minutes=1.0, why_not=lambda step: "", watch=None):
        """Results by name, as the file has them."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            results = runner.run_all(steps, {"fact": 1}, self.folder, minutes, why_not, watch)
        self.assertEqual(len(printed.getvalue().splitlines()), len(steps))
        with open(os.path.join(self.folder, "results.json"), encoding="utf-8") as file:
            written = json.load(file)
        self.assertEqual(written, {"fact": 1, "steps": results})
        return {result["name"]: result for result in results}


class Runner(Scratch):
    def test_what_becomes_of_programs(self):
        results = self.run_all(
            runner.Step("good", "", 10, shell("echo fine")),
            runner.Step("bad", "", 10, shell("echo worse; exit 3")),
            runner.Step("crash", "", 10, shell("kill -SEGV $$")),
            runner.Step("skip", "", 10, shell("echo 'SKIPPED: no moon'; exit 77")),
            runner.Step("refuses", "", 10, shell("echo 'Device not supported.'; exit 9", skips=("Device not supported",))),
            runner.Step("mistake", "", 10, lambda do: json.loads("{")),
            runner.Step("last", "", 10, shell("true")))
        self.assertEqual({name: result["status"] for name, result in results.items()}, {
            "good": "passed", "bad": "failed", "crash": "failed", "skip": "skipped", "refuses": "skipped",
            "mistake": "failed", "last": "passed"})
        self.assertEqual(results["good"]["figures"], {"output": "fine\n"})
        self.assertEqual(results["bad"]["reason"], "sh exited with 3")
        self.assertEqual(results["bad"]["output_tail"], "worse\n")
        self.assertEqual(results["crash"]["reason"], "sh was ended by signal 11")
        self.assertEqual(results["skip"]["reason"], "no moon")
        self.assertIn("JSONDecodeError", results["mistake"]["reason"])

    def test_a_program_that_hangs_is_killed_with_its_children(self):
        told = os.path.join(self.folder, "child")
        script = f"trap '' TERM; setsid sleep 1000 & echo $! >{told}; echo begun; while :; do sleep 0.1; done"
        start = time.monotonic()
        results = self.run_all(runner.Step("hangs", "", 0.5, shell(script)), runner.Step("next", "", 10, shell("true")))
        self.assertLess(time.monotonic() - start, 20)
        self.assertEqual(results["hangs"]["status"], "timed out")
        self.assertEqual(results["hangs"]["output_tail"], "begun\n")
        self.assertEqual(results["next"]["status"], "passed")
        with open(told, encoding="ascii") as file:
            child = file.read().strip()
        self.assertEqual(processes.environment_of(child), {}, "the child lives")

    def test_commands_of_a_step_share_its_time(self):
        def twice(do):
            for _ in range(2):
                do.run(["sleep", "0.6"], dict(os.environ))

        self.assertEqual(self.run_all(runner.Step("twice", "", 1, twice))["twice"]["status"], "timed out")

    def test_the_time_of_all_is_limited(self):
        results = self.run_all(runner.Step("long", "", 100, shell("sleep 100")), runner.Step("next", "", 10, shell("true")),
                               minutes=1.5 / 60)
        self.assertEqual(results["long"]["status"], "timed out")
        self.assertEqual(results["next"]["status"], "skipped")
        self.assertIn("minutes are over", results["next"]["reason"])

    def test_what_is_there_when_the_run_is_killed(self):
        seen = []

        def look(_):
            with open(os.path.join(self.folder, "results.json"), encoding="utf-8") as file:
                seen.extend(result["name"] for result in json.load(file)["steps"])

        self.run_all(runner.Step("first", "", 10, shell("true")), runner.Step("second", "", 10, look))
        self.assertEqual(seen, ["first"])

    def test_what_cannot_run_and_what_is_watched(self):
        class Watch:
            begun = 0

            def begin(self):
                self.begun += 1

            def end(self):
                return {"clocks.sm": [1, 2, 3]}

        watch = Watch()
        results = self.run_all(runner.Step("gpu", "", 10, shell("true")), runner.Step("cpu", "", 10, shell("true"), False),
                               why_not=lambda step: "no GPU" if step.needs_gpu else "", watch=watch)
        self.assertEqual((results["gpu"]["status"], results["gpu"]["reason"]), ("skipped", "no GPU"))
        self.assertEqual(results["cpu"]["clocks"], {"clocks.sm": [1, 2, 3]})
        self.assertEqual(watch.begun, 1)


if __name__ == "__main__":
    job.main()
