"""Reads data frames from R's binary files without R: .rda files, and packages' lazy-load pairs of .rdx and .rdb.

The format is R's XDR serialisation, described in "R Internals", section "Serialization Formats"
(https://cran.r-project.org/doc/manuals/R-ints.html). Read are the items that data frames are made of; anything else
is an error. Factors come as their 1-based codes.
"""
import bz2
import gzip
import lzma
import zlib

import numpy

# SEXPTYPE codes, and the pseudo types that serialisation adds at the end of the byte.
SYMBOL, PAIRLIST, CHARACTER, LOGICAL, INTEGER, REAL, STRINGS, LIST = 1, 2, 9, 10, 13, 14, 16, 19
GLOBAL_ENVIRONMENT, NIL, REFERENCE = 253, 254, 255
HAS_ATTRIBUTES, HAS_TAG = 0x200, 0x400
ZLIB_OR_GZIP = 47  # zlib's wbits: the largest window, whichever header there is


class Item:
    """A vector with attributes, of which data frames and factors consist."""

    def __init__(self, value, attributes):
        self.value = value
        self.attributes = attributes

    def columns(self):
        """name -> value of a list with names, as a data frame is."""
        return dict(zip(self.attributes["names"].value, self.value))


class Reader:
    """Items one after the other from serialised bytes, after the two bytes "X\\n"."""

    def __init__(self, data):
        if data[:2] != b"X\n":
            raise ValueError(f"R data begins with {data[:2]!r}; only XDR, b'X\\n', can be read")
        self.data = data
        self.at = 2
        self.references = []
        version, _, _ = self.integers(3)
        if version not in (2, 3):
            raise ValueError(f"R data has version {version} of the serialisation; 2 and 3 can be read")
        if version == 3:
            self.take(self.integer())  # name of the encoding

    def take(self, count):
        taken = self.data[self.at:self.at + count]
        if len(taken) != count:
            raise ValueError(f"R data ends after {len(self.data)} bytes in the middle of an item")
        self.at += count
        return taken

    def integers(self, count):
        return numpy.frombuffer(self.take(4 * count), ">i4").astype("i4")

    def integer(self):
        return int(self.integers(1)[0])

    def item(self):
        flags = self.integer()
        kind = flags & 0xFF
        if kind in (NIL, GLOBAL_ENVIRONMENT):
            return None
        if kind == REFERENCE:
            # The index is in the flags, or follows where it has no room there.
            index = flags >> 8
            return self.references[(index or self.integer()) - 1]
        if kind == SYMBOL:
            name = self.item()
            self.references.append(name)
            return name
        if kind == CHARACTER:
            length = self.integer()
            return None if length == -1 else self.take(length).decode("latin-1")
        if kind == PAIRLIST:
            return self.pairs(flags)
        return Item(self.vector(kind), self.pairs(self.integer()) if flags & HAS_ATTRIBUTES else {})

    def vector(self, kind):
        """The values of a vector; its attributes come after it."""
        if kind in (LOGICAL, INTEGER):
            return self.integers(self.integer())
        if kind == REAL:
            return numpy.frombuffer(self.take(8 * self.integer()), ">f8").astype("f8")
        if kind in (STRINGS, LIST):
            return [self.item() for _ in range(self.integer())]
        raise ValueError(f"R data holds an item of type {kind} at byte {self.at}, which data frames have not")

    def pairs(self, flags):
        """A pairlist as a dictionary: tags are the keys, and 0, 1, ... where there are none."""
        found = {}
        while flags & 0xFF != NIL:
            if flags & HAS_ATTRIBUTES:
                self.item()
            tag = self.item() if flags & HAS_TAG else len(found)
            found[tag] = self.item()
            flags = self.integer()
        return found


def decompressed(data):
    """Of a .rda file, which may be compressed in any way that R knows, or not at all."""
    for magic, decompress in ((b"\x1f\x8b", gzip.decompress), (b"BZh", bz2.decompress), (b"\xfd7zXZ", lzma.decompress)):
        if data.startswith(magic):
            return decompress(data)
    return data


def read_rda(path):
    """name -> Item of what save() has put into a file."""
    with open(path, "rb") as file:
        data = decompressed(file.read())
    if data[:5] not in (b"RDX2\n", b"RDX3\n"):
        raise ValueError(f"{path} begins with {data[:5]!r}, so it is no .rda file in XDR")
    return Reader(data[5:]).item()


def read_lazy_load(path, name):
    """The Item `name` of a package's data, of which `path`.rdx is the index and `path`.rdb holds the pieces."""
    with open(path + ".rdx", "rb") as file:
        index = Reader(zlib.decompress(file.read(), ZLIB_OR_GZIP)).item().columns()["variables"].columns()
    if name not in index:
        raise ValueError(f"{path}.rdx has no {name!r}, but {', '.join(sorted(index))}")
    offset, length = (int(number) for number in index[name].value)
    with open(path + ".rdb", "rb") as file:
        file.seek(offset)
        piece = file.read(length)
    # Four bytes with the length of the data; then a letter, unless zlib compressed it.
    method, body = piece[4:5], piece[5:]
    if method == b"Z":
        return Reader(lzma.decompress(body, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}])).item()
    return Reader(bz2.decompress(body) if method == b"2" else zlib.decompress(piece[4:])).item()
