"""launch/run: the command it makes, what it refuses, and how the jobs that it runs begin and end."""
import contextlib
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import processes

RUN = os.path.join(os.environ["ZEROSCHED_SOURCE_DIR"], "launch", "run")
CORES = len(os.sched_getaffinity(0))
# A rank that says what it hears, and a program that hears nothing. A signal that comes during a $(...) may confuse bash. As
# trainers do, all ranks hear before one leaves: Open MPI 5 kills what is left of a job at the first exit code but 0.
LISTENER = "times=$(seq 300); trap 'echo heard USR1; sleep 0.5; exit 75' USR1; echo up; for i in $times; do sleep 0.1; done; exit 1"
DEAF = "times=$(seq 300); trap '' USR1; echo up; for i in $times; do sleep 0.1; done"


def environment(**more):
    """Without what Slurm or the caller's own settings would add to the command."""
    kept = {name: value for name, value in os.environ.items()
            if not re.match(r"SLURM_|OMP_|OMPI_|GOMP_|KMP_|MKL_|NCCL_|CUDA_|TORCH_|UCX_|ZEROSCHED_|LD_LIBRARY_PATH", name)}
    return {**kept, **more}


def fake_tool(folder, name, script):
    """A program `name` in `folder`; returns the PATH on which it comes first."""
    path = os.path.join(folder, name)
    with open(path, "w") as file:
        file.write(f"#!/bin/sh\n{script}\n")
    os.chmod(path, 0o755)
    return f"{folder}:{os.environ['PATH']}"


def call(*arguments, env=None, text=None):
    return subprocess.run([RUN, *arguments], env=env or environment(), input=text, capture_output=True, text=True,
                          timeout=60)


class Command(unittest.TestCase):
    """What --dry-run prints."""

    def command(self, *arguments, **variables):
        result = call("--dry-run", *arguments, env=environment(**variables))
        self.assertEqual(result.returncode, 0, result.stderr)
        return shlex.split(result.stdout)

    def option(self, command, name):
        return [command[i + 1] for i, word in enumerate(command) if word == name]

    def test_threads_get_cores(self):
        command = self.command("-n", "1", "--threads", str(CORES), "prog")
        self.assertEqual(self.option(command, "--map-by"), [f"ppr:1:node:PE={CORES}:OVERSUBSCRIBE"])
        self.assertEqual(self.option(command, "--bind-to"), ["core"])
        self.assertIn(f"OMP_NUM_THREADS={CORES}", self.option(command, "-x"))

    def test_cores_are_shared_out(self):
        self.assertIn(f"OMP_NUM_THREADS={CORES}", self.option(self.command("-n", "1", "prog"), "-x"))
        command = self.command("-n", str(CORES), "prog")
        self.assertIn("OMP_NUM_THREADS=1", self.option(command, "-x"))
        self.assertEqual(self.option(command, "--bind-to"), ["core"])

    def test_more_threads_than_cores_are_not_bound(self):
        for arguments in (("-n", str(CORES + 1)), ("-n", "1", "--threads", str(CORES + 1)), ("-n", "1", "--no-bind")):
            command = self.command(*arguments, "prog")
            said = "so none is bound" in call("--dry-run", *arguments, "prog").stderr
            self.assertEqual(said, "--no-bind" not in arguments)
            self.assertEqual(self.option(command, "--bind-to"), ["none"], arguments)
            self.assertRegex(self.option(command, "--map-by")[0], "^ppr:[0-9]+:node:OVERSUBSCRIBE$")

    def test_omp_num_threads_of_the_caller(self):
        command = self.command("-n", "1", "prog", OMP_NUM_THREADS="3,2")
        self.assertIn("OMP_NUM_THREADS=3", self.option(command, "-x"))

    def test_hosts(self):
        command = self.command("--hosts", "a,b", "--ranks-per-node", "3", "prog")
        self.assertEqual(self.option(command, "--host"), ["a:3,b:3"])
        self.assertEqual(self.option(command, "-n"), ["6"])
        self.assertTrue(self.option(command, "--map-by")[0].startswith("ppr:3:node:"))
        command = self.command("--hosts=a,b:4", "prog")
        self.assertEqual(self.option(command, "--host"), ["a:1,b:4"])
        self.assertEqual(self.option(command, "-n"), ["5"])
        self.assertTrue(self.option(command, "--map-by")[0].startswith("slot:"))
        for hosts, ranks, shared_out in (("a,b", "3", "a:2,b:1"), ("a,b,c", "4", "a:2,b:1,c:1"), ("a,b,c", "2", "a:1,b:1"),
                                         ("a,b,a,a", "4", "a:3,b:1"), ("a:2,b:1,a:2", "5", "a:4,b:1")):
            command = self.command("--hosts", hosts, "-n", ranks, "prog")
            self.assertEqual((self.option(command, "--host"), self.option(command, "-n")), ([shared_out], [ranks]))
            self.assertTrue(self.option(command, "--map-by")[0].startswith("slot:"))

    def test_hostfile(self):
        with tempfile.NamedTemporaryFile("w", suffix=".hosts") as file:
            file.write("# ours\n\na slots=2  # fast\nb slots=1\n")
            file.flush()
            command = self.command("--hostfile", file.name, "prog")
            self.assertEqual(self.option(command, "--host"), ["a:2,b:1"])
            self.assertEqual(self.option(command, "-n"), ["3"])
            file.write("c slots=4")  # and no end of the line
            file.flush()
            self.assertEqual(self.option(self.command("--hostfile", file.name, "prog"), "--host"), ["a:2,b:1,c:4"])
            file.write("\nc max_slots=3\n")
            file.flush()
            result = call("--hostfile", file.name, "prog")
            self.assertEqual(result.returncode, 2)
            self.assertIn("max_slots=3", result.stderr)

    def test_gpus(self):
        command = self.command("--hosts", "a,b", "--gpus", "0,2,3", "prog")
        self.assertEqual(self.option(command, "-n"), ["6"])
        self.assertIn("CUDA_VISIBLE_DEVICES=0,2,3", self.option(command, "-x"))
        self.assertEqual(self.option(self.command("--gpus", "1", "-n", "2", "prog"), "-n"), ["2"])

    def test_environment(self):
        command = self.command("-n", "1", "--env", "GIVEN=a b", "--env", "NAMED", "prog", NAMED="1", NCCL_DEBUG="INFO",
                               LD_LIBRARY_PATH="/lib", OTHER="no")
        self.assertLessEqual({"GIVEN=a b", "NAMED", "NCCL_DEBUG", "LD_LIBRARY_PATH"}, set(self.option(command, "-x")))
        self.assertNotIn("OTHER", self.option(command, "-x"))
        command = self.command("-n", "1", "--env", "NCCL_DEBUG=WARN", "--env", "OMP_NUM_THREADS=1", "prog", NCCL_DEBUG="INFO",
                               OMP_NUM_THREADS="2")
        self.assertEqual(sorted(self.option(command, "-x")), ["NCCL_DEBUG=WARN", "OMP_NUM_THREADS=1"])

    def test_slurm_allocation(self):
        slurm = dict(SLURM_JOB_ID="7", SLURM_JOB_NUM_NODES="2", SLURM_NTASKS="4", SLURM_CPUS_ON_NODE="64",
                     SLURM_CPUS_PER_TASK="1")
        command = self.command("prog", **slurm)
        self.assertEqual(self.option(command, "--host"), [])
        self.assertEqual(self.option(command, "-n"), ["4"])
        self.assertTrue(self.option(command, "--map-by")[0].startswith("ppr:2:node:"))
        self.assertIn("OMP_NUM_THREADS=1", self.option(command, "-x"))
        self.assertEqual(self.option(self.command("--ranks-per-node", "3", "prog", **slurm), "-n"), ["6"])
        uneven = self.command("prog", **{**slurm, "SLURM_NTASKS": "3", "SLURM_TASKS_PER_NODE": "2,1"})
        self.assertEqual((self.option(uneven, "-n"), self.option(uneven, "--map-by")[0].split(":")[0]), (["3"], "slot"))
        self.assertNotIn("CUDA_VISIBLE_DEVICES", self.option(self.command("prog", CUDA_VISIBLE_DEVICES="0", **slurm), "-x"))
        self.assertIn("CUDA_VISIBLE_DEVICES", self.option(self.command("-n", "1", "prog", CUDA_VISIBLE_DEVICES="0"), "-x"))
        slurm["SLURM_CPUS_ON_NODE"] = "1"
        self.assertEqual(self.option(self.command("prog", **slurm), "--bind-to"), ["none"])

    def test_slurm_that_counts_hardware_threads(self):
        slurm = dict(SLURM_JOB_ID="7", SLURM_JOB_NUM_NODES="2", SLURM_NTASKS="2", SLURM_CPUS_ON_NODE=str(2 * CORES),
                     SLURM_CPUS_PER_TASK=str(2 * CORES))
        with tempfile.TemporaryDirectory() as folder:
            for cpus, threads, bound in ((CORES, 2 * CORES, "none"), (2 * CORES, CORES, "core")):
                path = fake_tool(folder, "scontrol", f"echo NodeName=n1 CoresPerSocket={CORES} CPUTot={cpus} Boards=1 Sockets=1")
                command = self.command("prog", PATH=path, **slurm)
                self.assertIn(f"OMP_NUM_THREADS={threads}", self.option(command, "-x"))
                self.assertEqual(self.option(command, "--bind-to"), [bound])

    def test_lost_hosts(self):
        command = self.command("-n", "1", "--lost-host-after", "30", "prog")
        self.assertEqual(command[command.index("oob_tcp_keepalive_time") + 1], "27")

    def test_open_mpi_5(self):
        with tempfile.TemporaryDirectory() as folder:
            for version, code, expected in (("mpirun (Open MPI) 5.0.6", 0, "--prtemca"), ("HYDRA 4.0", 127, "not Open MPI")):
                path = fake_tool(folder, "mpirun", f"echo '{version}'")
                result = call("--dry-run", "-n", "1", "prog", env=environment(PATH=path))
                self.assertEqual(result.returncode, code, result.stderr)
                self.assertIn(expected, result.stdout + result.stderr)
            path = fake_tool(folder, "mpirun", "echo 'mpirun (Open MPI) 5.0.6'")
            result = call("--dry-run", "--hosts", "a,b", "-n", "2", "prog", env=environment(PATH=path))
            self.assertIn("without launch/daemon, as it is version 5", result.stderr)

    def test_mpich(self):
        with tempfile.TemporaryDirectory() as folder:
            path = fake_tool(folder, "mpirun", "echo 'HYDRA build details:'; echo '    Version: 5.0.2'")
            command = self.command("-n", str(CORES), "--env", "GIVEN=a b", "--env", "NAMED", "prog", "-x", PATH=path, NAMED="1",
                                   NCCL_DEBUG="INFO")
            self.assertEqual(command[:5], ["mpirun", "-n", str(CORES), "-ppn", str(CORES)])
            self.assertEqual(self.option(command, "-bind-to"), ["core:1"])
            set_there = [command[i + 1:i + 3] for i, word in enumerate(command) if word == "-genv"]
            self.assertEqual(set_there, [["OMP_NUM_THREADS", "1"], ["GIVEN", "a b"]])  # the rest goes along unasked
            self.assertEqual(command[-2:], ["prog", "-x"])
            command = self.command("--hosts", "a:2,b:1", "--no-bind", "--gpus", "0,1", "prog", PATH=path)
            self.assertEqual((self.option(command, "-hosts"), self.option(command, "-n")), (["a:2,b:1"], ["3"]))
            self.assertIn("CUDA_VISIBLE_DEVICES", self.option(command, "-genv"))
            self.assertFalse({"-bind-to", "-ppn", "-x", "--host"} & set(command[:-1]))

    def test_arguments_arrive_as_they_are(self):
        words = ["--n", "a b", "$HOME", "", "'", "--dry-run"]
        result = call("-n", "1", "--", sys.executable, "-c", "import sys; print(sys.argv[1:])", *words)
        self.assertEqual(result.stdout.strip(), str(words), result.stderr)
        dry = call("--dry-run", "-n", "1", "--", "prog", *words)
        self.assertEqual(shlex.split(dry.stdout)[-len(words):], words)


class Refusals(unittest.TestCase):
    def test_bad_options(self):
        for arguments, expected in (
                (["--rank", "2", "prog"], "no option --rank"),
                (["-n"], "-n needs a value"),
                (["-n", "0", "prog"], "-n is '0'"),
                (["-n", "two", "prog"], "-n is 'two'"),
                (["--threads=", "-n", "1", "prog"], "--threads needs a value"),
                (["-n", "2"], "no program"),
                (["prog"], "how many ranks"),
                (["--hosts", "a,b", "prog"], "how many ranks"),
                (["--hosts", "a,,b", "-n", "2", "prog"], "is not a host"),
                (["--hosts", "a:0", "prog"], "'a:0' is not a host"),
                (["--hosts", "a:2", "-n", "3", "prog"], "the hosts take 2"),
                (["--hosts", "a:2", "--ranks-per-node", "2", "prog"], "contradicts"),
                (["-n", "2", "--ranks-per-node", "2", "prog"], "either -n or --ranks-per-node"),
                (["--hosts", "a", "--hostfile", "f", "-n", "1", "prog"], "either --hosts or --hostfile"),
                (["--hostfile", "/no/such/file", "-n", "1", "prog"], "/no/such/file cannot be read"),
                (["--gpus", "0,,1", "prog"], "--gpus is '0,,1'"),
                (["--env", "1X=2", "-n", "1", "prog"], "--env is '1X=2'"),
                (["--env", "NO_SUCH_VARIABLE", "-n", "1", "prog"], "NO_SUCH_VARIABLE=VALUE"),
                (["--lost-host-after", "3", "-n", "1", "prog"], "at least 4")):
            with self.subTest(arguments):
                result = call(*arguments)
                self.assertEqual(result.returncode, 2, result)
                self.assertIn(expected, result.stderr)
                self.assertEqual(result.stdout, "")

    def test_no_mpirun(self):
        with tempfile.TemporaryDirectory() as folder:
            for tool in ("bash", "env"):
                os.symlink(shutil.which(tool), os.path.join(folder, tool))
            result = call("-n", "1", "prog", env=environment(PATH=folder))
        self.assertEqual(result.returncode, 127)
        self.assertIn("launch/setup", result.stderr)


class Jobs(unittest.TestCase):
    def test_exit_codes(self):
        for code in (0, 70, 75):
            result = call("-n", "2", "sh", "-c", f"exit {code}")
            self.assertEqual(result.returncode, code, result.stderr)
        said = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=True).stdout
        killed = call("-n", "2", "sh", "-c", "kill -9 $$")
        self.assertEqual(killed.returncode, 9 if "HYDRA" in said else 128 + 9, killed.stderr)

    def test_no_program(self):
        with tempfile.NamedTemporaryFile() as file:  # which nobody may execute
            for program in ("/no/such/program", "no_such_program", file.name):
                result = call("-n", "1", program)
                self.assertEqual(result.returncode, 127, result.stderr)
                self.assertIn(f"'{program}' is no program", result.stderr)

    def test_ranks_get_environment_and_cores(self):
        say = 'echo "${OMPI_COMM_WORLD_RANK:-$PMI_RANK} $A $OMP_NUM_THREADS $(sed -n "s/^Cpus_allowed_list:\\t//p" /proc/self/status)"'
        result = call("-n", "2", "--threads", "1", "--env", "A=x y", "sh", "-c", say)
        self.assertEqual(result.returncode, 0, result.stderr)
        lines = sorted(result.stdout.splitlines())
        self.assertEqual([line.rsplit(" ", 1)[0] for line in lines], ["0 x y 1", "1 x y 1"])
        if CORES >= 2:
            places = {line.rsplit(" ", 1)[1] for line in lines}
            self.assertEqual(len(places), 2, f"the ranks share a core: {lines}")

    def test_rank_0_gets_input(self):
        self.assertEqual(call("-n", "2", "cat", text="to rank 0").stdout, "to rank 0")

    def signalled(self, program, numbers, *options, send=os.kill, pause=0.5):
        """Sends signals to launch/run once both ranks are up; returns exit code, output and seconds until its end. Nothing
        may be left."""
        mark = f"{os.getpid()}-{time.monotonic()}"
        process = subprocess.Popen([RUN, "-n", "2", *options, "bash", "-c", program], text=True,
                                   env=environment(ZEROSCHED_TEST_JOB=mark), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   start_new_session=True)
        try:
            for _ in range(2):
                self.assertEqual(process.stdout.readline(), "up\n")
            start = time.monotonic()
            for number in numbers:
                send(process.pid, number)
                time.sleep(pause)
            out, err = process.communicate(timeout=40)
            seconds = time.monotonic() - start
            # mpirun may end a moment before the last rank.
            self.assertEqual([processes.name_of(pid) for pid in processes.left_after(mark, 5)], [], (numbers, err))
        finally:
            processes.kill(processes.marked_processes(mark))
        return process.returncode, out, err, seconds

    def test_signals_reach_the_ranks(self):
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP):
            # Of the whole group: as timeout and terminals do.
            for send in (os.kill, os.killpg):
                code, out, err, _ = self.signalled(LISTENER, [number], send=send)
                self.assertEqual((code, out.count("heard USR1")), (75, 2), (number, send, out, err))
        # One event, several signals: a terminal that closes, timeout.
        for numbers in ([signal.SIGHUP, signal.SIGHUP], [signal.SIGTERM, signal.SIGTERM], [signal.SIGTERM, signal.SIGHUP]):
            code, out, err, _ = self.signalled(LISTENER, numbers, pause=0.1)
            self.assertEqual((code, out.count("heard USR1")), (75, 2), (numbers, out, err))

    def test_term_before_there_are_ranks(self):
        with tempfile.TemporaryDirectory() as folder:
            # As over slow connections: what mpirun is told before it has started ranks it does not pass on.
            path = fake_tool(folder, "mpirun", f"[ $1 = --version ] || {{ trap '' USR1; echo > {folder}/runs; sleep 2; trap - USR1; }}\n"
                             f"exec {shutil.which('mpirun')} \"$@\"")
            process = subprocess.Popen([RUN, "-n", "2", "bash", "-c", LISTENER], env=environment(PATH=path), text=True,
                                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
            while not os.path.exists(f"{folder}/runs"):
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            self.assertIn(process.wait(60), (75, 128 + signal.SIGUSR1))  # a rank may die of it before it listens
            process.stdout.close()

    def test_signal_before_there_is_an_mpirun(self):
        with tempfile.TemporaryDirectory() as folder:
            asked = os.path.join(folder, "asked")
            path = fake_tool(folder, "mpirun", f"[ $1 != --version ] || {{ echo > {asked}; sleep 1; }}\n"  # as if busy
                             f"exec {shutil.which('mpirun')} \"$@\"")
            for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
                process = subprocess.Popen([RUN, "-n", "2", "touch", f"{folder}/started"], stdin=subprocess.DEVNULL,
                                           env=environment(PATH=path))
                while not os.path.exists(asked):
                    time.sleep(0.01)
                os.remove(asked)
                process.send_signal(number)
                expected = signal.SIGTERM if number == signal.SIGINT else number
                self.assertEqual(process.wait(30), 128 + expected)  # not launch/run's own death, which is negative
                self.assertFalse(os.path.exists(f"{folder}/started"))

    def test_at_a_terminal(self):
        for program, typed, expected, least in (("read x; echo at end", b"", 0, 0), ("echo up; sleep 60", b"\x03", None, 1)):
            mark = f"{os.getpid()}-{time.monotonic()}"
            pid, terminal = pty.fork()
            if pid == 0:
                os.execve(RUN, [RUN, "-n", "2", "sh", "-c", program], environment(ZEROSCHED_TEST_JOB=mark))
            out = b""
            with contextlib.suppress(OSError):  # the terminal's end
                while data := os.read(terminal, 4096):
                    out += data
                    if out.count(b"up") == 2 and typed:
                        os.write(terminal, typed)
                        typed = b""
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.close(terminal)
            self.assertTrue(code == expected if expected is not None else code not in (0, 75), (program, code, out))
            self.assertEqual([processes.name_of(pid) for pid in processes.left_after(mark, least)], [])

    def test_killed_takes_the_job_with_it(self):
        start = time.monotonic()
        code, _, _, _ = self.signalled(DEAF, [signal.SIGKILL])
        self.assertEqual(code, -signal.SIGKILL)
        self.assertLess(time.monotonic() - start, 20)

    def test_grace_ends(self):
        code, _, err, seconds = self.signalled(DEAF, [signal.SIGTERM], "--grace", "3")
        self.assertNotIn(code, (0, 75))
        self.assertIn("did not end within 3 s", err)
        self.assertGreater(seconds, 3)
        self.assertLess(seconds, 20)

    def test_second_term_and_interrupt_end_at_once(self):
        for numbers in ([signal.SIGTERM, signal.SIGTERM], [signal.SIGINT]):
            for send in (os.kill, os.killpg):
                code, _, err, seconds = self.signalled(DEAF, numbers, send=send, pause=2.1)
                self.assertNotIn(code, (0, 75), err)
                self.assertLess(seconds, 20)


if __name__ == "__main__":
    os.chdir(tempfile.gettempdir())
    unittest.main(verbosity=2)
