"""The packed folder: where things are in it, and what environment its programs need to run with it and nothing else."""
import json
import os
import stat

import machine


class Bundle:
    def __init__(self, folder):
        self.folder = os.path.abspath(folder)
        with open(self.path("manifest.json"), encoding="utf-8") as file:
            self.manifest = json.load(file)

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def programs(self):
        return sorted(os.listdir(self.path("bin")))

    def why_too_old(self):
        """'' if this machine's C library is no older than the programs need."""
        numbers = lambda version: [int(number) for number in version.split(".")]
        here, needed = os.confstr("CS_GNU_LIBC_VERSION").split()[-1], self.manifest["glibc"]
        if numbers(here) < numbers(needed):
            return f"glibc {here} is here, the programs need {needed}: pack them on an older system"
        return ""

    def make_executable(self):
        """A copy may have lost it."""
        for folder in ("bin", os.path.join("openmpi", "bin")):
            for name in os.listdir(self.path(folder)):
                path = self.path(folder, name)
                if not os.access(path, os.X_OK):
                    os.chmod(path, os.stat(path).st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)

    def environment(self, torch, base=None):
        """Of programs. An Open MPI that has moved finds itself by OPAL_* and PMIX_*; told to use no network."""
        environment = dict(os.environ if base is None else base)
        folders = [self.path("lib"), *machine.library_folders(torch)]
        if environment.get("LD_LIBRARY_PATH"):
            folders.append(environment["LD_LIBRARY_PATH"])  # of the driver, where it is in no usual place
        environment.update(
            LD_LIBRARY_PATH=":".join(folders), OMP_NUM_THREADS="1",
            GTEST_COLOR="no",  # mpirun gives ranks a terminal
            OPAL_PREFIX=self.path("openmpi"), OPAL_BINDIR=self.path("openmpi", "bin"),
            OPAL_LIBDIR=self.path("lib"), OPAL_PKGLIBDIR=self.path("openmpi", "plugins"),
            OPAL_PKGDATADIR=self.path("openmpi", "share"), OPAL_SYSCONFDIR=self.path("openmpi", "etc"),
            PMIX_PREFIX=self.path("pmix"), PMIX_LIBDIR=self.path("pmix"), PMIX_PKGLIBDIR=self.path("pmix", "plugins"),
            PMIX_PKGDATADIR=self.path("pmix", "share"), PMIX_SYSCONFDIR=self.path("pmix", "etc"),
            HWLOC_PLUGINS_PATH=self.path("lib", "hwloc"),  # none, and not those of another version
            OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
            OMPI_MCA_plm="isolated", OMPI_MCA_oob_tcp_if_include="lo", OMPI_MCA_btl="self,vader",
            # Reading another process's memory is forbidden in many containers.
            OMPI_MCA_btl_vader_single_copy_mechanism="none")
        return environment

    def program(self, name, *arguments, ranks=0):
        """A command line; under mpirun with so many ranks, if any."""
        launcher = [self.path("openmpi", "bin", "mpirun"), "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
        return [*(launcher if ranks else []), self.path("bin", name), *map(str, arguments)]
