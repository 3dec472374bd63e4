"""The machines that tests make of this one: a Slurm of two nodes, two hosts on a network (see slurm and hosts)."""
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.environ["ZEROSCHED_SOURCE_DIR"]
BIN = os.environ["ZEROSCHED_BIN"]


def reason_to_skip(tools):
    """What a lab needs and this machine lacks, or None."""
    if os.geteuid() != 0:
        return "test machines are made of namespaces by root only"
    for tool in tools:
        if shutil.which(tool) is None:
            return f"{tool} is missing (Debian packages: slurm-wlm, munge, iproute2)"
    if subprocess.run(["unshare", "--uts", "--mount", "--net", "true"], capture_output=True).returncode != 0:
        return "this machine does not allow new namespaces"
    return None


class Lab:
    """One pair of machines in a folder that only this build tree uses."""

    tools = ()

    def __init__(self, script):
        key = hashlib.sha256(BIN.encode()).hexdigest()[:8]
        # Short, because sockets are in it; the same at the next run, which then finds what a killed one has left.
        self.dir = os.path.join(tempfile.gettempdir(), f"zerosched-{os.path.basename(script)}-{key}")
        self.script = os.path.join(HERE, script)
        self.shared = os.path.join(self.dir, "shared")
        self.private = os.path.join(self.dir, "private")

    def call(self, action, *arguments, check=True):
        return subprocess.run([self.script, action, self.dir, *arguments], check=check, stdout=subprocess.PIPE, text=True,
                              timeout=60).stdout

    def down(self):
        self.call("down")


class Slurm(Lab):
    tools = ("munged", "slurmctld", "slurmd", "srun", "ss", "unshare")

    def __init__(self):
        super().__init__("slurm")

    def up(self):
        conf = self.call("up", SOURCE, os.path.dirname(BIN)).strip()
        os.mkdir(self.shared)
        # Of the caller's environment, what belongs to another job must not get into this Slurm's.
        self.environment = {name: value for name, value in os.environ.items()
                            if not name.startswith(("SLURM_", "OMPI_", "PMIX_"))}
        self.environment.update(SLURM_CONF=conf, ZEROSCHED_LAUNCH=os.path.join(SOURCE, "launch"))

    def run(self, *command, timeout=120):
        return subprocess.run(command, env=self.environment, cwd=self.shared, capture_output=True, text=True,
                              timeout=timeout)


class Hosts(Lab):
    tools = ("ip", "tc", "unshare")

    def __init__(self):
        super().__init__("hosts")

    def up(self, *rate):
        self.call("up", *rate)
        os.mkdir(self.shared)
        self.environment = {**os.environ, "OMPI_MCA_plm_rsh_agent": f"{self.script} rsh {self.dir}"}

    def on(self, host, *command):
        """The command that runs `command` on a host."""
        return [self.script, "on", self.dir, host, *command]

    def run(self, host, *command, timeout=120):
        return subprocess.run(self.on(host, *command), env=self.environment, cwd=self.shared, capture_output=True, text=True,
                              timeout=timeout)


if __name__ == "__main__":
    # CTest's cleanup: whatever tests have left, also those that were killed.
    if reason_to_skip(("ip", "unshare")) is None:
        for kind in (Slurm, Hosts):
            if os.path.exists(kind().dir):
                kind().down()
    sys.exit(0)
