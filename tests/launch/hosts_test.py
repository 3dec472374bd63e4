"""launch/run and launch/doctor across two hosts on a network of 1 Gbit/s."""
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

import job
import lab
import processes
import tiny_gpt

RUN = os.path.join(lab.SOURCE, "launch", "run")
DOCTOR = os.path.join(lab.SOURCE, "launch", "doctor")
PROGRAM = job.program("zerosched_doctor")
LAB = lab.Hosts()
GBIT = 1e9 / 8  # bytes per second


def setUpModule():
    LAB.up("1gbit")
    unittest.addModuleCleanup(LAB.down)
    LAB.environment["ZEROSCHED_DOCTOR"] = PROGRAM


class Run(unittest.TestCase):
    def test_ranks_are_where_they_should_be(self):
        say = "echo $OMPI_COMM_WORLD_RANK $(hostname) $OMPI_COMM_WORLD_LOCAL_RANK $A $OMP_NUM_THREADS"
        result = LAB.run("h1", RUN, "--hosts", "h1,h2", "--ranks-per-node", "2", "--threads", "1", "--env", "A=x", "sh", "-c", say)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(sorted(result.stdout.splitlines()), ["0 h1 0 x 1", "1 h1 1 x 1", "2 h2 0 x 1", "3 h2 1 x 1"])
        result = LAB.run("h1", RUN, "--hosts", "h1:1,h2:2", "sh", "-c", say)
        self.assertEqual(sorted(line.split()[1] for line in result.stdout.splitlines()), ["h1", "h2", "h2"], result.stderr)

    def test_exit_code_of_another_host(self):
        result = LAB.run("h1", RUN, "--hosts", "h1,h2", "-n", "2", "sh", "-c", '[ "$(hostname)" = h1 ] || exit 75')
        self.assertEqual(result.returncode, 75, result.stderr)

    def test_char_gpt_computes_what_it_computes_on_one_host(self):
        arguments = [job.program("char_gpt"), "--synthetic", "--steps", "10", "--dim", "32", "--layers", "1", "--batch", "4",
                     "--seq", "32", "--progress", "off", "--json"]
        here, _ = job.train([*job.mpirun(2), *arguments[:-1]])
        result = LAB.run("h1", RUN, "--hosts", "h1,h2", "-n", "2", "--threads", "1", *arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        there = json.loads(result.stdout.splitlines()[-1])
        for loss in ("first_loss", "last_loss", "eval_loss_x", "eval_loss_y"):
            self.assertEqual(there[loss], here[loss], loss)

    def test_missing_host(self):
        result = LAB.run("h1", RUN, "--hosts", "h1,h3", "-n", "2", "true")
        self.assertNotIn(result.returncode, (0, 70, 75))


class Doctor(unittest.TestCase):
    def doctor(self, *arguments):
        return LAB.run("h1", DOCTOR, "--hosts", "h1,h2", "--threads", "1", *arguments)

    def report(self, *arguments):
        result = self.doctor("--json", *arguments)
        self.assertIn(result.returncode, (0, 3), result.stderr)
        report = json.loads(result.stdout)
        self.assertEqual(result.returncode, 3 if report["problems"] else 0)
        return report

    def findings(self, report, check):
        return [finding for finding in report["findings"] if finding["check"] == check]

    def test_all_is_well(self):
        with tempfile.TemporaryDirectory(dir=LAB.shared) as folder:
            report = self.report("--ranks-per-node", "1", "--sizes", "4", "--checkpoint-dir", folder)
            self.assertEqual(os.listdir(folder), [], "something was left behind")
        self.assertEqual((report["problems"], report["warnings"]), (0, 0), report)
        self.assertEqual([rank["host"] for rank in report["ranks"]], ["h1", "h2"])
        self.assertIn("they reach each other", self.findings(report, "ranks")[0]["what"])
        self.assertEqual([line["collective"] for line in report["bandwidth"]], ["reduce_scatter", "all_gather"])
        for line in report["bandwidth"]:
            self.assertEqual(line["bytes"], 4 << 20)
            # The network is the limit, less what the token bucket lets through in a burst.
            self.assertLess(line["bytes_per_second"], 1.3 * GBIT)
            self.assertGreater(line["bytes_per_second"], 0.05 * GBIT)
            self.assertEqual(line["host_bytes_per_second"], line["bytes_per_second"])  # one rank per host
        self.assertEqual((report["stream"]["from"], report["stream"]["to"], report["stream"]["address"]),
                         ("h1", "h2", "10.77.0.1"))
        self.assertLess(report["stream"]["bytes_per_second"], 1.3 * GBIT)
        self.assertGreater(report["stream"]["bytes_per_second"], 0.05 * GBIT)
        self.assertIn("a plain TCP stream between h1 and h2 (10.77.0.1) moves", self.findings(report, "network")[0]["what"])

    def test_table(self):
        result = self.doctor("--ranks-per-node", "2", "--sizes", "1,2")
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        for expected in ("Ranks", "h2", "reduce_scatter", "all_gather", "cross-memory attach works", "plain TCP stream", "0 problems"):
            self.assertIn(expected, result.stdout)

    def test_checkpoint_folder_that_is_not_shared(self):
        report = self.report("--ranks-per-node", "1", "--sizes", "0", "--checkpoint-dir", LAB.private)
        self.assertEqual(report["problems"], 1)
        finding = self.findings(report, "checkpoints")[0]
        self.assertIn("is not seen on h2", finding["what"])
        self.assertIn("one folder that all hosts mount", finding["advice"])

    def test_checkpoint_folder_that_is_missing(self):
        table = self.doctor("--ranks-per-node", "1", "--sizes", "0", "--checkpoint-dir", f"{LAB.shared}/none")
        self.assertEqual(table.returncode, 3)
        self.assertIn("cannot be written on h1, h2: open: No such file", " ".join(table.stdout.split()))

    def test_checkpoint_folder_that_is_full(self):
        full = os.path.join(LAB.shared, "full")
        os.mkdir(full)
        # Each host mounts its own; only rank 0's is looked into.
        script = f"mount -t tmpfs -o size=1m tmpfs {full} && exec {DOCTOR} -n 1 --sizes 0 --checkpoint-dir {full}"
        result = LAB.run("h1", "sh", "-c", script)
        self.assertEqual(result.returncode, 3, result.stderr)
        self.assertIn("No space left", " ".join(result.stdout.split()))

    def test_another_build_on_one_host(self):
        library = os.path.realpath(os.path.join(os.path.dirname(lab.BIN), "zerosched", "src", "libzerosched.so"))
        soname = ".".join(os.path.basename(library).split(".")[:4])  # libzerosched.so.0.1 of libzerosched.so.0.1.0
        for host in ("h1", "h2"):
            folder = os.path.join(LAB.dir, host)  # what the host sees as LAB.private
            shutil.copyfile(library, os.path.join(folder, soname))
        with open(os.path.join(LAB.dir, "h2", soname), "ab") as file:
            file.write(b"\0")  # loads as before
        LAB.environment["LD_LIBRARY_PATH"] = LAB.private
        try:
            report = self.report("--ranks-per-node", "1", "--sizes", "0")
        finally:
            del LAB.environment["LD_LIBRARY_PATH"]
        self.assertEqual(report["problems"], 1, report["findings"])
        self.assertIn("zerosched differs", self.findings(report, "versions")[0]["what"])

    def test_small_shm(self):
        script = f"mount -o remount,size=8m /dev/shm && exec {DOCTOR} -n 2 --threads 1 --sizes 0"
        result = LAB.run("h1", "sh", "-c", script)
        self.assertEqual(result.returncode, 3, result.stderr)
        self.assertIn("--shm-size=1g", result.stdout)

    def test_limits_and_crowded_cores_are_warnings(self):
        cores = len(os.sched_getaffinity(0))
        result = LAB.run("h1", "sh", "-c", f"ulimit -n 500; exec {DOCTOR} -n 2 --threads {cores} --sizes 0")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("ulimit -n", result.stdout)
        self.assertIn("take turns", result.stdout)

    def test_ranks_that_do_not_start(self):
        result = LAB.run("h1", DOCTOR, "--hosts", "h1,h3", "-n", "2")
        self.assertEqual(result.returncode, 70)
        self.assertIn("the ranks did not start", result.stderr)

    def test_wrong_options(self):
        for arguments in (["--no-such-option", "x"], ["word"], ["--checkpoint-dir"], ["-n", "1", "--sizes", "-1"],
                          ["-n", "1", "--sizes", "x"], ["-n", "1", "--timeout", "0"]):
            result = LAB.run("h1", DOCTOR, *arguments)
            self.assertEqual(result.returncode, 2, (arguments, result.stdout, result.stderr))


class LostHost(unittest.TestCase):
    def test_cut(self):
        # On either host something is left to end.
        command = [RUN, "--hosts", "h1,h2", "-n", "2", "--lost-host-after", "5", "sh", "-c", "echo up; sleep 100"]
        running = job.Job(LAB.on("h1", *command), LAB.environment)
        running.wait_for(lambda: running.printed()[0].count("up") == 2, "both ranks")
        LAB.call("cut")
        self.addCleanup(LAB.call, "join")
        start = time.monotonic()
        result = running.end(50, leaving=20)
        self.assertEqual(result.code, 69, result)
        self.assertLess(time.monotonic() - start, 40)

    def start(self, ranks, folder, *arguments):
        return job.Job(LAB.on("h1", RUN, "--hosts", "h1,h2", "-n", str(ranks), "--threads", "1", "--lost-host-after", "10",
                              *tiny_gpt.command(folder, *arguments)), LAB.environment)

    def test_char_gpt_gives_up_first_and_goes_on_to_the_same_bits(self):
        for ranks in 2, 4:  # in pairs on a host, which exchange with each other first
            with self.subTest(ranks=ranks):
                self.check_cut(ranks)

    def check_cut(self, ranks):
        steps = ["--steps", "200", "--checkpoint-every", "10"]
        whole = tiny_gpt.undisturbed(tempfile.mkdtemp(dir=LAB.shared), ranks, *steps)
        folder = tempfile.mkdtemp(dir=LAB.shared)
        # The ranks' own end has mpirun talk to the lost host, which keeps it from noticing the loss. It comes well before
        # mpirun's probes would be over, also where the machine is busy.
        running = self.start(ranks, folder, *steps, "--timeout", "3")
        running.wait_for(lambda: tiny_gpt.steps_in(folder) > 20, "step 20")
        LAB.call("cut")
        try:
            cut = time.monotonic()
            result = running.end(60, leaving=20)
            self.assertEqual(result.code, 69, result)
            self.assertLess(time.monotonic() - cut, 30)
            self.assertRegex(result.err, r"gave up \w+ #\d+ '.*' .*after 3 s; ranks? [123, and]+ do(es)? not respond")
        finally:
            LAB.call("join")
        result = self.start(ranks, folder, *steps).end()
        self.assertEqual(result.code, 0, result)
        self.assertEqual(tiny_gpt.export_in(folder), whole)

    # One of two on its host: the other has its memory, and ranks elsewhere wait for both.
    def test_a_rank_that_is_stopped_or_killed(self):
        for by, code in (signal.SIGSTOP, 70), (signal.SIGKILL, None):
            with self.subTest(by=by):
                folder = tempfile.mkdtemp(dir=LAB.shared)
                running = self.start(4, folder, "--steps", "100000", "--timeout", "3")
                running.wait_for(lambda: tiny_gpt.steps_in(folder) > 20, "step 20")
                start = time.monotonic()
                processes.kill([running.ranks()[3]], by)
                result = running.end(60, leaving=20)
                self.assertLess(time.monotonic() - start, 30)
                if code is None:
                    self.assertNotEqual(result.code, 0, result)
                else:
                    self.assertEqual(result.code, code, result)
                    self.assertRegex(result.err, "after 3 s; rank 3 does not respond")


if __name__ == "__main__":
    REASON = lab.reason_to_skip(lab.Hosts.tools)
    if REASON:
        job.skip(REASON)
    unittest.main(verbosity=2)
