"""Builds the package: a PEP 517 backend that needs nothing but Python.

pip calls the functions at the end; the others are theirs.
"""

import base64
import hashlib
import io
import pathlib
import re
import tarfile
import zipfile

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "esperd/__init__.py").read_text("utf-8"), re.M).group(1)
DIST_INFO = f"esperd-{VERSION}.dist-info"
SDIST = f"esperd-{VERSION}"

METADATA = f"""\
Metadata-Version: 2.1
Name: esperd
Version: {VERSION}
Summary: The trainer's side of esperd: one decision for all ranks of a network that grows while it trains
Requires-Python: >=3.9
Classifier: Programming Language :: Python :: 3
Classifier: Typing :: Typed
Description-Content-Type: text/markdown

"""

WHEEL = """\
Wheel-Version: 1.0
Generator: esperd
Root-Is-Purelib: true
Tag: py3-none-any
"""

EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file: the same source gives the same wheel


def _sources():
    return sorted(p for p in (HERE / "esperd").rglob("*") if p.suffix in (".py", ".ptx", ".typed"))


def _metadata():
    return METADATA + (HERE / "README.md").read_text("utf-8")


def _write_wheel(directory, files):
    """Write a wheel of (name, bytes) and return its file name."""
    name = f"esperd-{VERSION}-py3-none-any.whl"
    files = [*files, (f"{DIST_INFO}/METADATA", _metadata().encode()), (f"{DIST_INFO}/WHEEL", WHEEL.encode())]
    record = ""
    with zipfile.ZipFile(pathlib.Path(directory) / name, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, content in files:
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record += f"{path},sha256={digest},{len(content)}\n"
            wheel.writestr(_entry(path), content)
        wheel.writestr(_entry(f"{DIST_INFO}/RECORD"), record + f"{DIST_INFO}/RECORD,,\n")
    return name


def _entry(path):
    entry = zipfile.ZipInfo(path, EPOCH)
    entry.external_attr = 0o644 << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    return _write_wheel(wheel_directory, [(p.relative_to(HERE).as_posix(), p.read_bytes()) for p in _sources()])


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    return _write_wheel(wheel_directory, [("esperd.pth", f"{HERE.resolve()}\n".encode())])


def build_sdist(sdist_directory, config_settings=None):
    name = f"{SDIST}.tar.gz"
    with tarfile.open(pathlib.Path(sdist_directory) / name, "w:gz", dereference=True) as sdist:
        for path in [*_sources(), HERE / "pyproject.toml", HERE / "build_backend.py", HERE / "README.md"]:
            sdist.add(path, f"{SDIST}/{path.relative_to(HERE).as_posix()}")
        info = tarfile.TarInfo(f"{SDIST}/PKG-INFO")
        content = _metadata().encode()
        info.size = len(content)
        sdist.addfile(info, io.BytesIO(content))
    return name
