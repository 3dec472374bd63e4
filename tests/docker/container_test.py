"""Builds docker/Dockerfile's cpu target for real, on a base image made here, and runs the image's demo.

Long (LibTorch is installed and zerosched compiled anew), so it runs with ZEROSCHED_TEST_CONTAINER=1 only. There is no
Docker engine in it: buildah builds with chroot for isolation and this machine's network.
"""
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

import job

SOURCE = os.environ["ZEROSCHED_SOURCE_DIR"]
BASE, IMAGE = "localhost/zerosched-test-base", "localhost/zerosched-test"


def call(*command, timeout=3600):
    print("+", *command, flush=True)
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=timeout).stdout.strip()


def package_sources():
    """Files of apt on this machine, and the first of its mirrors."""
    files = [path for path in ("/etc/apt/sources.list", *glob.glob("/etc/apt/sources.list.d/*.sources")) if os.path.exists(path)]
    for path in files:
        with open(path, encoding="utf-8") as file:
            mirror = re.search(r"^(?:URIs:|deb(?: \[.*?\])?) *(\S+)", file.read(), re.MULTILINE)
        if mirror:
            return [*files, *glob.glob("/etc/apt/apt.conf.d/99*")], mirror.group(1)
    sys.exit("FAILED: apt has no sources here")


def make_base():
    """A minimal Debian 12 that fetches packages from where this machine does."""
    files, mirror = package_sources()
    with tempfile.TemporaryDirectory() as folder:
        root = os.path.join(folder, "root")
        call("debootstrap", "--variant=minbase", "bookworm", root, mirror)
        shutil.rmtree(os.path.join(root, "var/cache/apt"))
        for path in files:
            os.makedirs(os.path.dirname(root + path), exist_ok=True)
            shutil.copy(path, root + path)
        certificates = os.environ.get("PIP_CERT", "/etc/ssl/certs/ca-certificates.crt")
        if os.path.exists(certificates):
            os.makedirs(f"{root}/etc/ssl", exist_ok=True)
            shutil.copy(certificates, f"{root}/etc/ssl/builder.crt")
            with open(f"{root}/etc/pip.conf", "w", encoding="ascii") as settings:
                settings.write("[global]\ncert = /etc/ssl/builder.crt\n")
        container = call("buildah", "from", "scratch")
        try:
            call("buildah", "copy", "--quiet", container, root, "/")
            call("buildah", "commit", "--quiet", container, BASE)
        finally:
            call("buildah", "rm", container)


def run_in_image(*command):
    container = call("buildah", "from", IMAGE)
    try:
        return call("buildah", "run", "--isolation=chroot", container, "--", *command, timeout=600)
    finally:
        call("buildah", "rm", container)


def check(condition, why):
    if not condition:
        sys.exit(f"FAILED: {why}")


if __name__ == "__main__":
    if os.environ.get("ZEROSCHED_TEST_CONTAINER") != "1":
        job.skip("building an image takes long; set ZEROSCHED_TEST_CONTAINER=1")
    if os.geteuid() != 0:
        job.skip("images are built by root only")
    for tool in ("buildah", "debootstrap"):
        if shutil.which(tool) is None:
            job.skip(f"{tool} is missing (Debian package {tool})")
    if not call("buildah", "images", "--quiet", "--filter", f"reference={BASE}"):
        make_base()
    call("buildah", "build", "--isolation=chroot", "--network=host", "--layers", "--target=cpu", f"--build-arg=BASE_IMAGE={BASE}",
         f"--tag={IMAGE}", f"--file={SOURCE}/docker/Dockerfile", SOURCE)

    CONFIG = json.loads(call("buildah", "inspect", "--type=image", IMAGE))["OCIv1"]["config"]
    check(CONFIG["User"] == "trainer", f"the image's user is {CONFIG['User']}")
    OUTPUT = run_in_image(*CONFIG["Cmd"], "30")
    check("Held-out loss" in OUTPUT and "Trained a byte-level GPT for 30 steps on 2 ranks" in OUTPUT, OUTPUT)
    check("0 problems" in run_in_image("launch/doctor", "--sizes", "1"), "the doctor found problems")
    check(run_in_image("id", "-un") == "trainer", "the user is not trainer")
    SIZE = json.loads(call("buildah", "images", "--json", IMAGE))[0]["size"]
    print(f"The image has {SIZE}.")
