"""Reads NVIDIA machine code, as cuobjdump prints it, and says what a kernel's hot loop costs.

The hot loop is the one with the most bytes in 128-bit accesses to global memory. It is read as straight line:
branches inside of it lead to the slow paths of division and square root, which subnormals and infinities take;
their calls are counted as instructions, what they call is not.
"""

import re
import subprocess

INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;")
GLOBAL_ACCESS = re.compile(r"^(LDG|STG|LD|ST|RED|ATOM|ATOMG)(\.|$)")
WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}


class Instruction:
    def __init__(self, address, name, operands):
        self.address, self.name, self.operands = address, name, operands

    @property
    def is_global_access(self):
        return bool(GLOBAL_ACCESS.match(self.name))

    @property
    def bytes(self):
        return next((WIDTHS[part] for part in self.name.split(".")[1:] if part in WIDTHS), 4)

    @property
    def branch_target(self):
        if not self.name.startswith("BRA"):
            return None
        target = re.search(r"0x([0-9a-f]+)", self.operands)
        return int(target.group(1), 16) if target else None


class Kernel:
    def __init__(self, name, instructions, resources):
        self.name, self.instructions, self.resources = name, instructions, resources

    def loops(self):
        """Instructions of each loop: from the target of a branch backwards to the branch."""
        found = []
        for instruction in self.instructions:
            target = instruction.branch_target
            if target is not None and target < instruction.address:
                found.append([i for i in self.instructions if target <= i.address <= instruction.address])
        return found

    def innermost_loops(self):
        loops = self.loops()
        return [a for a in loops
                if not any(b is not a and a[0].address <= b[0].address and b[-1].address <= a[-1].address
                           for b in loops)]

    def wide_loops(self):
        """Innermost loops that access global memory in 128 bits."""
        return [loop for loop in self.innermost_loops() if any(i.is_global_access and i.bytes == 16 for i in loop)]

    def hot_loop(self):
        """None if there is no wide loop."""
        return max(self.wide_loops(), default=None,
                   key=lambda loop: sum(i.bytes for i in loop if i.is_global_access and i.bytes == 16))


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}")
    return done.stdout


def read_kernels(cuobjdump, path, architecture):
    """The kernels of an object or cubin for one architecture, e.g. "sm_90"."""
    resources = {}
    name = None
    for line in run([cuobjdump, "-arch", architecture, "-res-usage", path]).splitlines():
        if function := re.match(r"\s*Function (\S+):", line):
            name = function.group(1)
        elif name and "REG:" in line:
            resources[name] = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
            name = None
    kernels = []
    instructions = None
    for line in run([cuobjdump, "-arch", architecture, "-sass", path]).splitlines():
        if function := re.match(r"\s*Function : (\S+)", line):
            instructions = []
            kernels.append(Kernel(function.group(1), instructions, resources.get(function.group(1), {})))
        elif instructions is not None and (match := INSTRUCTION.match(line)):
            address, _, instruction, operands = match.groups()
            instructions.append(Instruction(int(address, 16), instruction, operands))
    return kernels
