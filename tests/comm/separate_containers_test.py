"""Ranks of one host that cannot share memory, as in containers of their own: MPI copies, and one rank says so.

usage: separate_containers_test.py PROGRAM
"""
import os
import shutil
import subprocess
import sys

import job

PROGRAM = sys.argv[1]
RANKS = 3
OWN_PIDS = ["unshare", "--pid", "--fork", "--mount-proc"]

if os.geteuid() != 0 or shutil.which("unshare") is None or subprocess.run([*OWN_PIDS, "true"], capture_output=True).returncode != 0:
    job.skip("this machine does not allow new PID namespaces, or only to root")
# Open MPI's own shared memory breaks when two processes of a host have one number.
command = [*job.mpirun(RANKS), "--mca", "btl", "tcp,self", *OWN_PIDS, PROGRAM, "--gtest_filter=*BitsDoNotDependOnWhoIsLate/OneHost"]
code, out, err = job.run(command, 60)
warning = "cannot share memory with the other ranks of its host"
if code != 0 or (out + err).count(warning) != 1:
    sys.exit(f"FAILED: exit code {code}, {(out + err).count(warning)} warnings\n--- stdout\n{out}\n--- stderr\n{err}")
