"""The packages that the battery's data comes from: finds their files, installed or not, and checks what is in them."""
import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile


class Missing(Exception):
    """Data that cannot be had here; the message says how it can."""


@dataclasses.dataclass(frozen=True)
class Package:
    """A package of Debian's or of PyPI's, and those of its files that are used, with their SHA-256."""
    index: str  # "Debian" or "PyPI"
    name: str
    version: str
    licence: str
    files: dict  # path in the package -> SHA-256

    def folder(self, cache):
        """Where its files are, fetched into `cache` if they are not installed."""
        if self.index == "Debian" and all(os.path.exists(os.path.join("/", path)) for path in self.files):
            return self.checked("/")
        unpacked = os.path.join(cache, "packages", f"{self.name}-{self.version}")
        if not os.path.isdir(unpacked):
            self.fetch(unpacked)
        return self.checked(unpacked)

    def checked(self, folder):
        """`folder`, in which every file is what was there when this was written."""
        for path, expected in self.files.items():
            with open(os.path.join(folder, path), "rb") as file:
                found = hashlib.sha256(file.read()).hexdigest()
            if found != expected:
                raise Missing(f"{os.path.join(folder, path)} has SHA-256 {found}, expected {expected}, that of "
                              f"{self.name} {self.version}. Remove it if it is damaged.")
        return folder

    def fetch(self, unpacked):
        """Downloads the package and unpacks it without installing it, whole or not at all."""
        print(f"prepare_data: fetching {self.name} {self.version} ({self.index}, {self.licence})", file=sys.stderr)
        os.makedirs(os.path.dirname(unpacked), exist_ok=True)
        with tempfile.TemporaryDirectory(dir=os.path.dirname(unpacked)) as folder:
            contents = os.path.join(folder, "contents")
            try:
                if self.index == "Debian":
                    # Not the version: what counts is that the files are the same.
                    archive = download(folder, "apt-get", "-o", "APT::Sandbox::User=root", "download", self.name)
                    run(folder, "dpkg-deb", "--extract", archive, contents)
                else:
                    archive = download(folder, sys.executable, "-m", "pip", "download", "--no-deps", "--quiet",
                                       "--disable-pip-version-check", f"{self.name}=={self.version}")
                    with zipfile.ZipFile(archive) as wheel:
                        wheel.extractall(contents)
            except (OSError, RuntimeError) as error:
                by_hand = (f"apt-get update && apt-get download {self.name} && dpkg-deb --extract {self.name}_*.deb"
                           if self.index == "Debian" else
                           f"pip download --no-deps {self.name}=={self.version} && unzip {self.name}-*.whl -d")
                raise Missing(f"{self.name} {self.version} of {self.index} could not be fetched: {error}\n"
                              f"  Where there is a network: {by_hand} {self.name}-{self.version}\n"
                              f"  and copy that folder to {unpacked}") from None
            absent = [path for path in self.files if not os.path.exists(os.path.join(contents, path))]
            if absent:
                raise Missing(f"{os.path.basename(archive)} holds no {absent[0]}, as {self.name} {self.version} does")
            os.rename(contents, unpacked)


def run(folder, *command):
    """Runs `command` in `folder`. RuntimeError with the last line that it printed if it fails."""
    result = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            check=False)
    if result.returncode != 0:
        lines = result.stdout.strip().splitlines() or [f"{command[0]} ended with exit code {result.returncode}"]
        raise RuntimeError(lines[-1])


def download(folder, *command):
    """Path of the one file that `command` leaves in `folder`."""
    run(folder, *command)
    [name] = os.listdir(folder)
    return os.path.join(folder, name)


def king_james(text_sha256):
    """The bytes of the text, which Debian's program prints."""
    bible = shutil.which("bible") or "/usr/games/bible"
    if not os.path.exists(bible):
        raise Missing("the program bible is missing; install Debian's packages bible-kjv and bible-kjv-text "
                      "(launch/setup does)")
    text = subprocess.run([bible, "-f", "gen1:1-rev22:21"], stdout=subprocess.PIPE, check=True).stdout
    found = hashlib.sha256(text).hexdigest()
    if found != text_sha256:
        raise Missing(f"{bible} prints a text of SHA-256 {found}, expected {text_sha256}, that of bible-kjv-text 4.38")
    return text
