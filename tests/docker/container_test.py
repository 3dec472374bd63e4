"""Builds docker/Dockerfile's images for real, on base images made here, and runs what they are for.

usage: container_test.py cpu|hosts|cuda    with the variables that CMakeLists.txt sets

Long (LibTorch is installed and zerosched compiled anew), so it runs with ZEROSCHED_TEST_CONTAINER=1 only. There is no
Docker engine in it: buildah builds with chroot for isolation and this machine's network. Images stay, for the next run
to build on; `buildah rmi --all` removes them.
"""
import contextlib
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

import job
import lab

SOURCE = os.environ["ZEROSCHED_SOURCE_DIR"]
BASE = "localhost/zerosched-test-base"
TOOLKIT = "/usr/local/cuda"
CUDA_GIB = 35  # of disk, for all layers of the cuda target on a base with the toolkit


def call(*command, timeout=3600):
    print("+", *command, flush=True)
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, errors="replace",
                          timeout=timeout).stdout.strip()


def check(condition, why):
    if not condition:
        sys.exit(f"FAILED: {why}")


@contextlib.contextmanager
def container(image):
    name = call("buildah", "from", image)
    try:
        yield name
    finally:
        call("buildah", "rm", name)


def package_sources():
    """Debian's file among apt's sources on this machine, its mirror, and settings that fetching from it needs."""
    for path in ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"):
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                mirror = re.search(r"^(?:URIs:|deb(?: \[.*?\])?) *(\S+)", file.read(), re.MULTILINE)
            if mirror:
                return path, mirror.group(1), glob.glob("/etc/apt/apt.conf.d/99*")
    job.skip("apt's sources on this machine are not Debian's")


def make_base(image, *toolkit):
    """A minimal Debian 12 that fetches packages from where this machine does, with the folders of a CUDA toolkit."""
    if call("buildah", "images", "--quiet", "--filter", f"reference={image}"):
        return
    sources, mirror, settings = package_sources()
    with tempfile.TemporaryDirectory() as folder:
        root = os.path.join(folder, "root")
        call("debootstrap", "--variant=minbase", "bookworm", root, mirror)
        shutil.rmtree(os.path.join(root, "var/cache/apt"))
        os.remove(os.path.join(root, "etc/apt/sources.list"))  # debootstrap's, which knows no security updates
        for path in (sources, *settings):
            os.makedirs(os.path.dirname(root + path), exist_ok=True)
            shutil.copy(path, root + path)
        certificates = os.environ.get("PIP_CERT", "/etc/ssl/certs/ca-certificates.crt")
        if os.path.exists(certificates):
            os.makedirs(f"{root}/etc/ssl", exist_ok=True)
            shutil.copy(certificates, f"{root}/etc/ssl/builder.crt")
            with open(f"{root}/etc/pip.conf", "w", encoding="ascii") as file:
                file.write("[global]\ncert = /etc/ssl/builder.crt\n")
        with container("scratch") as base:
            call("buildah", "copy", "--quiet", base, root, "/")
            for path in toolkit:
                call("buildah", "copy", "--quiet", base, os.path.realpath(path), path)
            call("buildah", "commit", "--quiet", base, image)


def build(target, base):
    image = f"localhost/zerosched-test-{target}"
    call("buildah", "build", "--isolation=chroot", "--network=host", "--layers", f"--target={target}",
         f"--build-arg=BASE_IMAGE={base}", f"--build-arg=RUNTIME_IMAGE={BASE}", f"--tag={image}",
         f"--file={SOURCE}/docker/Dockerfile", SOURCE)
    return image


def check_image(image):
    """The default command trains, in its short version; and what else a user would try first."""
    config = json.loads(call("buildah", "inspect", "--type=image", image))["OCIv1"]["config"]
    check(config["User"] == "trainer", f"the image's user is {config['User']}")
    with container(image) as name:
        def run(*command):
            return call("buildah", "run", "--isolation=chroot", name, "--", *command, timeout=600)
        output = run(*config["Cmd"], "30")
        print(output)
        check("Held-out loss" in output and "Trained a byte-level GPT for 30 steps on 2 ranks" in output, "it did not train")
        check("0 problems" in run("launch/doctor", "--sizes", "1"), "the doctor found problems")
        check(run("id", "-un") == "trainer", "the user is not trainer")
        missing = run("sh", "-c", "ldd /usr/local/bin/* /usr/local/lib/*.so | grep 'not found' || true")
        check(not missing, f"libraries are missing:\n{missing}")
    print(f"{image} has {json.loads(call('buildah', 'images', '--json', image))[0]['size']}")


def find(image, *arguments):
    with container(image) as name:
        return call("buildah", "run", "--isolation=chroot", name, "--", "find", *arguments).splitlines()


def check_tools(image):
    """What it took to make the tools is not in their image."""
    left = find(image, "/opt", "-mindepth", "1", "-maxdepth", "1")
    check(left == ["/opt/zerosched"], f"XDG_CACHE_HOME is not to hold but launch/setup's environment: {left}")
    left = find(image, "/root", "/var/cache", "-name", ".cache", "-o", "-name", ".ccache", "-o", "-name", "*.deb")
    check(not left, f"there are caches: {left}")


def check_no_toolkit(image):
    """LibTorch's CUDA libraries are there, so the search finds what there is, and of the toolkit it finds nothing."""
    found = find(image, "/usr", "/opt", "-name", "nvcc", "-o", "-name", "*.a", "-o", "-name", "libtorch_cuda.so")
    check([os.path.basename(path) for path in found] == ["libtorch_cuda.so"], f"the image has {found}")


def cpu():
    make_base(BASE)
    check_image(build("cpu", BASE))
    check_tools(build("tools-cpu", BASE))  # a part of that, so it is there already


def cuda():
    if not os.path.exists(f"{TOOLKIT}/bin/nvcc"):
        job.skip(f"the CUDA target's base image is made with this machine's {TOOLKIT}, and there is none")
    if shutil.disk_usage("/var").free < CUDA_GIB * 2**30:
        job.skip(f"the layers of the CUDA target take {CUDA_GIB} GiB in /var, which are not free")
    make_base(BASE)
    make_base(f"{BASE}-cuda", TOOLKIT)
    image = build("cuda", f"{BASE}-cuda")
    check_image(image)
    check_no_toolkit(image)


def services():
    """name -> command, and the volumes, of compose.yaml, as far as its JSON-like lines go."""
    with open(os.path.join(SOURCE, "docker", "compose.yaml"), encoding="utf-8") as file:
        text = file.read()
    commands = dict(re.findall(r"^  (h\d):\n(?:    (?!command).*\n)*    command: (\[[^]]*\])", text, re.MULTILINE))
    volumes = json.loads(re.search(r"volumes: (\[.*\])", text).group(1))
    return {name: json.loads(command) for name, command in commands.items()}, volumes


def hosts():
    """compose.yaml's two services, each in a container on a host of its own."""
    missing = lab.reason_to_skip(lab.Hosts.tools)
    if missing:
        job.skip(missing)
    make_base(BASE)
    image = build("cpu", BASE)
    commands, volumes = services()
    check(set(commands) == {"h1", "h2"} and len(volumes) == 2, f"compose.yaml has {commands} and {volumes}")
    machines = lab.Hosts()
    with contextlib.ExitStack() as stack:
        stack.callback(machines.down)
        machines.up("1gbit")
        options = []
        user = call("buildah", "run", "--isolation=chroot", stack.enter_context(container(image)), "--", "id", "-u")
        for volume in volumes:
            name, inside = volume.split(":")
            folder = os.path.join(machines.shared, name)
            os.mkdir(folder, 0o700)
            os.chown(folder, int(user), int(user))
            options.append(f"--volume={folder}:{inside}")

        def command(host, words):
            return machines.on(host, "buildah", "run", "--isolation=chroot", f"--hostname={host}", *options,
                               f"--volume={machines.dir}/hosts:/etc/hosts", stack.enter_context(container(image)), "--", *words)

        jobs = (("h2", commands["h2"]), ("h1", commands["h1"]),
                ("h1", ["docker/host", "launch/doctor", "--hosts", "h1,h2", "--ranks-per-node", "1"]))
        serve, train, examine = [command(host, words) for host, words in jobs]
        # The network between them is what it takes: without the other host the same command fails.
        alone = subprocess.run(train, capture_output=True, text=True, errors="replace", timeout=300)
        print(alone.stdout, alone.stderr)
        check(alone.returncode != 0 and "Connection refused" in alone.stderr, "it trained without the other host")

        server = subprocess.Popen(serve)
        stack.callback(server.wait)
        stack.callback(machines.down)  # ends all that runs there

        trained = subprocess.run(train, capture_output=True, text=True, errors="replace", timeout=600)
        print(trained.stdout, trained.stderr)
        check(trained.returncode == 0, f"training ended with exit code {trained.returncode}")
        check(os.path.exists(os.path.join(machines.shared, "runs", "gpt", "latest")), "there is no checkpoint")
        examined = subprocess.run(examine, capture_output=True, text=True, timeout=300)
        print(examined.stdout, examined.stderr)
        check(examined.returncode == 0 and "h2" in examined.stdout, "the doctor found problems")


CASES = {"cpu": cpu, "hosts": hosts, "cuda": cuda}

if __name__ == "__main__":
    if os.environ.get("ZEROSCHED_TEST_CONTAINER") != "1":
        job.skip("building an image takes long; set ZEROSCHED_TEST_CONTAINER=1")
    if os.geteuid() != 0:
        job.skip("images are built by root only")
    for tool in ("buildah", "debootstrap"):
        if shutil.which(tool) is None:
            job.skip(f"{tool} is missing (Debian package {tool})")
    CASES[sys.argv[1]]()
