"""The GPU's tests under compute-sanitizer: no access out of bounds, no use of what nobody wrote, no race in shared
memory. usage: sanitizer_test.py PROGRAM [argument...]"""
import os
import shutil
import subprocess
import sys

import job

FOUND = 9  # what compute-sanitizer exits with
TOOLS = {"memcheck": ["--leak-check", "no"], "initcheck": [], "racecheck": []}


def main():
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    program = sys.argv[1:]
    plain = job.run(program, timeout=280)
    print(plain.out, plain.err, flush=True)
    if plain.code != 0:
        return plain.code  # of a failure, or of a program that said why it is skipped
    if not os.path.exists(sanitizer):
        job.skip("compute-sanitizer is not there; it is a part of the CUDA toolkit")
    skipped = False
    for tool, options in TOOLS.items():
        command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), *options, *program]
        print(" ".join(command), flush=True)
        code = subprocess.run(command, timeout=1500).returncode
        skipped = skipped or code == job.SKIPPED  # a case that finds less memory than without the tool
        if code not in (0, job.SKIPPED):
            print(f"FAILED: {tool} {'found something' if code == FOUND else f'ended with {code}'}")
            return 1
    return job.SKIPPED if skipped else 0


sys.exit(main())
