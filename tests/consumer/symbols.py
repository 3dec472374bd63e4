"""Which symbols a shared library exports, and which of them are not zerosched's public ones."""
import glob
import os
import re
import subprocess
import sys

# What the compiler makes for a type or a function, before the name of it.
PREFIXES = r"(?:vtable for |typeinfo (?:name )?for |VTT for |construction vtable for |guard variable for " \
           r"|(?:non-)?virtual thunk to |covariant return thunk to |TLS (?:init|wrapper) function for )?"
# What users name; the rest of zerosched is hidden.
OWN = re.compile(rf"^{PREFIXES}zerosched::(?!detail::(?!BatchNormPass)|device::|kernels::)")


def library(prefix):
    found = glob.glob(os.path.join(prefix, "lib*", "**", "libzerosched.so"), recursive=True)
    if len(found) != 1:
        sys.exit(f"FAILED: expected one libzerosched.so below {prefix}, found {found}")
    return found[0]


def exported(path):
    """Demangled names of the dynamic symbols that `path` defines, with nm's letter for their kind before them."""
    output = subprocess.run(["nm", "-D", "-C", "--defined-only", path], check=True, capture_output=True, text=True)
    return [re.sub(r"^[0-9a-f]* *", "", line) for line in output.stdout.splitlines()]


def foreign(names):
    """Those that another library could define as well, and those that nobody outside needs."""
    return [name for name in names if not OWN.search(name.split(" ", 1)[1])]


def self_test():
    own = ["T zerosched::Session::Session(int&, char**&)", "V vtable for zerosched::Work",
           "V typeinfo name for zerosched::Work", "T non-virtual thunk to zerosched::Work::~Work()"]
    others = ["W std::vector<zerosched::ParameterGroup>::~vector()", "T MPI_Init", "V typeinfo for c10::Error",
              "T not_zerosched::f()", "T zerosched::detail::Engine::step()", "V vtable for zerosched::detail::MpiGroup"]
    if foreign(own + others) != others:
        sys.exit(f"FAILED: the check of symbols calls these foreign: {foreign(own + others)}, not these: {others}")
