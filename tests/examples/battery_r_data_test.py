"""The battery's reader of R's files, on data frames that are serialised here by the format's description."""
import bz2
import gzip
import lzma
import os
import struct
import sys
import tempfile
import unittest
import zlib

import job

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../examples/battery"))
try:
    import r_data
except ImportError as error:
    job.skip(f"{error}; launch/setup makes a Python that has it")

NIL = struct.pack(">i", 254)


class Writer:
    """Items in R's XDR serialisation."""

    def __init__(self, version):
        self.symbols = []
        header = {2: [2, 0x40202, 0x20300], 3: [3, 0x40202, 0x30500]}[version]
        self.data = b"X\n" + struct.pack(">3i", *header) + (struct.pack(">i", 5) + b"UTF-8" if version == 3 else b"")

    def add(self, *integers):
        self.data += struct.pack(f">{len(integers)}i", *integers)

    def characters(self, text):
        if text is None:
            self.add(9, -1)
        else:
            self.add(9 | 1 << 18, len(text))
            self.data += text.encode()

    def tag(self, name):
        if name in self.symbols:
            self.add((self.symbols.index(name) + 1) << 8 | 255)
        else:
            self.symbols.append(name)
            self.add(1)
            self.characters(name)

    def attributes(self, **values):
        for name, write in values.items():
            self.add(2 | 0x400)
            self.tag(name)
            write()
        self.data += NIL

    def strings(self, *texts):
        self.add(16, len(texts))
        for text in texts:
            self.characters(text)

    def integers(self, *values):
        self.add(13, len(values), *values)

    def factor(self, codes, levels):
        self.add(13 | 0x300, len(codes), *codes)
        self.attributes(levels=lambda: self.strings(*levels), **{"class": lambda: self.strings("factor")})

    def reals(self, *values):
        self.add(14, len(values))
        self.data += struct.pack(f">{len(values)}d", *values)

    def frame(self):
        self.add(19 | 0x300, 3)
        self.factor([2, 1, 2], ["low", "high"])
        self.reals(0.5, -1.25, 3.0)
        self.integers(7, 8, -9)
        self.attributes(names=lambda: self.strings("level", "x", "n"), **{
            "class": lambda: self.strings("data.frame"), "row.names": lambda: self.integers(-2**31, -3)})


class RData(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def write(self, name, data):
        path = os.path.join(self.folder.name, name)
        with open(path, "wb") as file:
            file.write(data)
        return path

    def check(self, frame):
        columns = frame.columns()
        self.assertEqual(list(columns), ["level", "x", "n"])
        self.assertEqual(columns["level"].value.tolist(), [2, 1, 2])
        self.assertEqual(columns["level"].attributes["levels"].value, ["low", "high"])
        self.assertEqual(columns["x"].value.tolist(), [0.5, -1.25, 3.0])
        self.assertEqual(columns["n"].value.tolist(), [7, 8, -9])

    def rda(self, version):
        writer = Writer(version)
        writer.add(2 | 0x400)
        writer.tag("first")
        writer.frame()
        writer.add(2 | 0x400)
        writer.tag("second")
        writer.strings("a", None)
        writer.data += NIL
        return b"RDX%d\n" % version + writer.data

    def test_rda(self):
        for version in (2, 3):
            for compress in (bytes, gzip.compress, bz2.compress, lzma.compress):
                with self.subTest(version=version, compress=compress):
                    items = r_data.read_rda(self.write("data.rda", compress(self.rda(version))))
                    self.assertEqual(list(items), ["first", "second"])
                    self.check(items["first"])
                    self.assertEqual(items["second"].value, ["a", None])

    def test_lazy_load(self):
        frame = Writer(3)
        frame.frame()
        size = struct.pack(">i", len(frame.data))
        raw = lzma.compress(frame.data, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 6}])
        pieces = {"zlib": size + zlib.compress(frame.data), "bzip2": size + b"2" + bz2.compress(frame.data),
                  "xz": size + b"Z" + raw}
        index = Writer(2)
        index.add(19 | 0x200, 1)
        index.add(19 | 0x200, len(pieces))
        at = 0
        for piece in pieces.values():
            index.integers(at, len(piece))
            at += len(piece)
        index.attributes(names=lambda: index.strings(*pieces))
        index.attributes(names=lambda: index.strings("variables"))
        for compress in (zlib.compress, gzip.compress):
            path = self.write("Rdata.rdx", compress(index.data))[:-4]
            self.write("Rdata.rdb", b"".join(pieces.values()))
            for name in pieces:
                with self.subTest(name):
                    self.check(r_data.read_lazy_load(path, name))
        with self.assertRaisesRegex(ValueError, "no 'other', but bzip2, xz, zlib"):
            r_data.read_lazy_load(path, "other")

    def test_what_is_no_data(self):
        whole = self.rda(2)
        for data, message in ((whole[:-40], "ends after"), (b"PNG" + whole, "no .rda file"),
                              (whole.replace(b"X\n\0\0\0\2", b"A\n\0\0\0\2", 1), "only XDR"),
                              (whole.replace(b"X\n\0\0\0\2", b"X\n\0\0\0\1", 1), "version 1"),
                              (whole.replace(struct.pack(">i", 14), struct.pack(">i", 15), 1), "type 15")):
            with self.subTest(message), self.assertRaisesRegex(ValueError, message):
                r_data.read_rda(self.write("bad.rda", data))


if __name__ == "__main__":
    unittest.main(verbosity=2)
