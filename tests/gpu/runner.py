"""Runs steps one after the other, each with a time limit, and keeps what came of them. Nothing that a step does ends the
run: a program that hangs is killed with all its processes, one that crashes has failed, one that exits with 77 is skipped."""
import collections
import json
import os
import signal
import subprocess
import tempfile
import time

from processes import kill, marked_processes

SKIPPED = 77  # SKIP_RETURN_CODE of the tests
TAIL = 3000  # characters of output that the results keep

# `run(do)` gets a Commands and returns figures, or None. `needs_gpu`: skipped where there is none.
Step = collections.namedtuple("Step", "name what limit run needs_gpu", defaults=(True,))


class Skip(Exception):
    """The step cannot run here, and why. `output`: of the program that says so."""

    def __init__(self, reason, output=""):
        super().__init__(reason)
        self.output = output


class Failure(Exception):
    """The step has failed, and why."""


class TimedOut(Exception):
    """It took longer than its limit."""


def reason_in(output):
    """What a program that is skipped says; the first if it is for several reasons."""
    for line in output.splitlines():
        if "SKIPPED: " in line:
            return line.split("SKIPPED: ", 1)[1]
    return "no reason given"


class Commands:
    """Runs the commands of one step, whose time they share."""

    def __init__(self, limit, log):
        self.end = time.monotonic() + limit
        self.log = log
        self.output = ""

    def run(self, command, environment, skips=()):
        """Output of a command that ends well. `skips`: texts in the output of a failure for which it counts as skipped."""
        with tempfile.TemporaryFile() as file:
            code = self._wait(command, environment, file)
            file.seek(0)
            output = file.read().decode(errors="replace")
        self.output += output
        self.log.write(f"$ {' '.join(command)}\n{output}\n")
        self.log.flush()
        name = os.path.basename(command[0])
        if code is None:
            raise TimedOut(f"{name} did not end in time")
        if code == SKIPPED:
            raise Skip(reason_in(output), output)
        if code != 0:
            for text in skips:
                if text in output:
                    raise Skip(text)
            raise Failure(f"{name} was ended by signal {-code}" if code < 0 else f"{name} exited with {code}")
        return output

    def _wait(self, command, environment, file):
        """Its exit code; None if there was no more time for it."""
        mark = f"gpu-check-{os.getpid()}-{time.monotonic_ns()}"
        process = subprocess.Popen(command, env=dict(environment, ZEROSCHED_TEST_JOB=mark), stdin=subprocess.DEVNULL,
                                   stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return process.wait(max(self.end - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # mpirun ends its ranks
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                pass
            return None
        finally:
            kill(marked_processes(mark))
            process.wait()


def run_step(step, limit, log):
    """The result of one step as results.json has it."""
    log.write(f"== {step.name}: {step.what}\n")
    commands = Commands(limit, log)
    result = {"name": step.name, "what": step.what}
    start = time.monotonic()
    try:
        result["figures"] = step.run(commands)
        result["status"] = "passed"
    except Skip as skip:
        result.update(status="skipped", reason=str(skip))
    except TimedOut as late:
        result.update(status="timed out", reason=f"{late} ({limit:.0f} s)")
    except Failure as failure:
        result.update(status="failed", reason=str(failure))
    except Exception as error:  # a mistake of the step itself, as of its reading of figures
        result.update(status="failed", reason=f"{type(error).__name__}: {error}")
    result["seconds"] = round(time.monotonic() - start, 2)
    result["output_tail"] = commands.output[-TAIL:]
    return result


def skipped(step, reason):
    return {"name": step.name, "what": step.what, "status": "skipped", "reason": reason, "seconds": 0, "output_tail": ""}


def line_of(result):
    reason = f"  {result['reason']}" if result.get("reason") else ""
    return f"{result['status'].upper():9} {result['name']:18} {result['seconds']:6.1f} s{reason}"


def run_all(steps, facts, folder, minutes, why_not, watch=None):
    """Runs the steps, telling each as it ends; the results, which are also in folder/results.json after every step.

    `why_not(step)`: why it cannot run here, or ''. `watch`: begin() and end(), which returns a step's clocks."""
    end = time.monotonic() + 60 * minutes
    results = []
    with open(os.path.join(folder, "log.txt"), "w", encoding="utf-8") as log:
        for step in steps:
            left = end - time.monotonic()
            reason = why_not(step) or ("" if left > 1 else f"the {minutes:g} minutes are over")
            if reason:
                result = skipped(step, reason)
            else:
                if watch:
                    watch.begin()
                result = run_step(step, min(step.limit, left), log)
                if watch:
                    result["clocks"] = watch.end()
            results.append(result)
            print(line_of(result), flush=True)
            write_json(os.path.join(folder, "results.json"), dict(facts, steps=results))
    return results


def write_json(path, value):
    """Whole or not at all, whenever the run is killed."""
    with open(path + ".part", "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
    os.replace(path + ".part", path)
