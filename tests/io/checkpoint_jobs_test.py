"""Checkpoints of real jobs: other world sizes, processes killed at every step of a save, a disk that is full."""
import os
import re
import shutil
import subprocess
import tempfile
import unittest

import job

PROGRAM = "checkpoint_program"


def command(ranks, **arguments):
    launcher = job.mpirun(ranks) if ranks > 1 else []
    words = [word for name, value in arguments.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return [*launcher, job.program(PROGRAM), *words]


def digest(ranks, **arguments):
    """What a job that must succeed prints: its last step, and a digest of z, x, v and y."""
    result = job.run(command(ranks, **arguments))
    if result.code != 0:
        raise AssertionError(f"exit code {result.code}: {arguments}\n{result.out}\n{result.err}")
    return re.search(r"step \d+ digest \d+", result.out).group()


class Jobs(unittest.TestCase):
    def setUp(self):
        self.root = tempfile.mkdtemp(prefix="zerosched-test-")
        self.addCleanup(shutil.rmtree, self.root)

    def path(self, name):
        return os.path.join(self.root, name)


class WorldSizes(Jobs):
    def test_loads_at_any_world_size_and_bucket_size(self):
        saved = digest(4, steps=5, save=self.path("at_4"))
        self.assertEqual(saved, digest(1, steps=5, save=self.path("at_1")))
        later = digest(1, load=self.path("at_1"), steps=3)
        for ranks, bucket_bytes in ((1, 100), (2, 1 << 20), (3, 1000), (8, 300)):
            for source in ("at_4", "at_1"):
                with self.subTest(ranks=ranks, source=source):
                    arguments = dict(load=self.path(source), bucket_bytes=bucket_bytes)
                    self.assertEqual(digest(ranks, **arguments), saved)
                    self.assertEqual(digest(ranks, steps=3, **arguments), later)


class Killed(Jobs):
    def checkpoints(self):
        """What a later job may find: the old checkpoint or the new one, and by the name `latest`."""
        self.old = digest(1, steps=3, save=self.path("template/old"))
        self.new = digest(1, load=self.path("template/old"), steps=2)
        self.assertNotEqual(self.old, self.new)

    def check_after(self, root, why):
        others = [name for name in os.listdir(root) if not name.startswith(".")]
        # The next save of either name succeeds and leaves nothing but checkpoints behind.
        for name in ("old", "new"):
            if name in others and os.path.basename(os.path.realpath(os.path.join(root, "latest"))) != name:
                self.assertIn(digest(1, load=os.path.join(root, name)), (self.old, self.new), f"{why}: {name}")
        for name in ("old", "new"):
            found = digest(1, load=os.path.join(root, "latest"), save=os.path.join(root, name))
            self.assertIn(found, (self.old, self.new), why)
        self.assertEqual(sorted(os.listdir(root)), ["latest", "new", "old"], why)

    def kill_everywhere(self, ranks, rank, names, every=1):
        killed = 0
        for name in names:
            for call in range(1, 1000, every):
                root = self.path(f"{name}-{call}")
                shutil.copytree(self.path("template"), root, symlinks=True)
                result = job.run(command(ranks, load=f"{root}/old", steps=2, save=f"{root}/{name}", kill_at=call,
                                         kill_rank=rank))
                if result.code == 0:
                    break
                self.assertIn(result.code, (-9, 137), result)
                killed += 1
                self.check_after(root, f"killed at call {call} of saving {name}")
                shutil.rmtree(root)
            else:
                self.fail("no save was ever finished")
            self.assertEqual(digest(1, load=f"{root}/latest"), self.new)
        return killed


class KilledAlone(Killed):
    def test_at_every_call(self):
        self.checkpoints()
        # "new" is a new folder, "old" replaces one.
        killed = self.kill_everywhere(1, 0, ("new", "old"))
        print(f"killed at {killed} points")
        self.assertGreater(killed, 30)


class KilledRank(Killed):
    def test_rank_0_and_rank_1(self):
        self.checkpoints()
        killed = self.kill_everywhere(2, 1, ("new",)) + self.kill_everywhere(2, 0, ("old",), every=4)
        print(f"killed at {killed} points")
        self.assertGreater(killed, 6)


class KilledWithoutExchange(Killed):
    """Where two names cannot be exchanged (NFS), at every call of replacing a checkpoint."""
    def setUp(self):
        super().setUp()
        for name, value in (("LD_PRELOAD", job.program("libwithout_calls.so")),
                            ("ZEROSCHED_TEST_WITHOUT", "renameat2,symlink,fallocate")):
            os.environ[name] = value
            self.addCleanup(os.environ.pop, name)

    def check_after(self, root, why):
        # "old" by whatever name it has at the moment, then a save that cleans up.
        self.assertIn(digest(1, load=os.path.join(root, "old")), (self.old, self.new), why)
        found = digest(1, load=os.path.join(root, "latest"), save=os.path.join(root, "old"))
        self.assertIn(found, (self.old, self.new), why)
        self.assertEqual(sorted(os.listdir(root)), ["latest", "old"], why)
        self.assertFalse(os.path.islink(os.path.join(root, "latest")), why)

    def test_at_every_call(self):
        self.checkpoints()
        killed = self.kill_everywhere(1, 0, ("old",))
        print(f"killed at {killed} points")
        self.assertGreater(killed, 30)


class FullDisk(Jobs):
    def test_save_fails_and_leaves_the_old_checkpoint(self):
        disk = self.path("disk")
        os.mkdir(disk)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], stderr=subprocess.PIPE,
                                 text=True, check=False)
        if mounted.returncode != 0:
            self.skipTest(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
        self.addCleanup(subprocess.run, ["umount", disk], check=True)
        saved = digest(2, rows=5000, steps=2, save=f"{disk}/old")
        result = job.run(command(2, rows=5000, load=f"{disk}/old", steps=2, save=f"{disk}/new"))
        self.assertEqual(result.code, 70, result)
        self.assertIn("No space left on device", result.err)
        self.assertIn(f"{disk}/.new.partial/", result.err)
        self.assertEqual(sorted(os.listdir(disk)), ["latest", "old"])
        self.assertEqual(digest(2, rows=5000, load=f"{disk}/latest"), saved)


class FullExt4(Jobs):
    """tmpfs gives back what could not be allocated, ext4 keeps it."""
    def disk(self):
        path, image = self.path("disk"), self.path("image")
        os.mkdir(path)
        with open(image, "wb") as file:
            file.truncate(6 << 20)
        commands = (["mkfs.ext4", "-q", "-O", "^has_journal", image], ["mount", "-o", "loop", image, path])
        for command_line in commands:
            try:
                done = subprocess.run(command_line, stderr=subprocess.PIPE, text=True, check=False)
            except FileNotFoundError as error:
                self.skipTest(str(error))
            if done.returncode != 0:
                self.skipTest(f"a small ext4 cannot be mounted here: {done.stderr.strip()}")
        self.addCleanup(subprocess.run, ["umount", path], check=True)
        return path

    def free(self, disk):
        status = os.statvfs(disk)
        return status.f_bavail * status.f_frsize

    def test_export_fails_and_gives_back_the_space(self):
        disk = self.disk()
        rows = 15000  # of 25 numbers: 1.5 MB, of which a checkpoint has three
        before = self.free(disk)
        filler = os.path.join(disk, "filler")
        with open(filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, before - (1 << 20))
        before = self.free(disk)
        for fails in (dict(export=f"{disk}/model.safetensors"), dict(save=f"{disk}/step")):
            result = job.run(command(2, rows=rows, **fails))
            self.assertEqual(result.code, 70, result)
            self.assertIn("No space left on device", result.err)
            self.assertEqual(self.free(disk), before)
            self.assertEqual(sorted(os.listdir(disk)), ["filler", "lost+found"])
        os.remove(filler)
        digest(2, rows=rows, export=f"{disk}/model.safetensors")
        self.assertEqual(sorted(os.listdir(disk)), ["lost+found", "model.safetensors"])


if __name__ == "__main__":
    job.main()
