"""Local paths and addresses alike: `s3://bucket/folder` and `hf://datasets/org/name`.

An address becomes a universal-pathlib path, which answers to what `pathlib.Path` answers to, so
that sources and readers need not know where a file lies. Credentials are those of the store's own
clients (environment, profile, `hf auth login`); none is ever asked for, printed or written down.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from cot_builder.errors import UserError

# What each needs, and what its own client reads credentials from.
_STORES: Final = {
    "s3": (
        "s3fs",
        "credentials are those of the AWS tools (AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY), another store's address is AWS_ENDPOINT_URL",
    ),
    "hf": ("huggingface_hub", "the token is that of HF_TOKEN or `hf auth login`"),
}
_ADDRESS: Final = re.compile(r"(\w+):/{1,2}(.*)", re.DOTALL)
# What the clients raise beside OSError when they do not get through.
_CLIENTS: Final = ("aiobotocore", "aiohttp", "botocore", "httpx", "httpx2", "huggingface_hub")
BLOCK: Final = 8 << 20


def where(text: str | Path) -> Path:
    """Return a local path as it is, and an address as a path into its store; asks nothing of it.

    UserError for a store that is not known or whose client is not installed.
    """
    match = _ADDRESS.fullmatch(str(text))
    if not match or len(match[1]) == 1:  # C:/ is a disk
        return Path(text)
    scheme, rest = match.groups()
    if scheme not in _STORES:
        known = ", ".join(f"{name}://" for name in _STORES)
        raise UserError(f"{text}: unknown kind of address; expected a local path, or {known}")
    if "@" in rest.partition("/")[0]:
        raise UserError(
            f"{scheme}:// address with a key in it: it would be kept in your shell's history; "
            f"leave it out: {_STORES[scheme][1]}"
        )
    try:
        import_module(_STORES[scheme][0])
        from upath import UPath
    except ModuleNotFoundError as error:
        raise UserError(
            f"{scheme}:// needs {error.name}: pip install 'cot-builder[remote]' -c constraints.txt"
        ) from None
    # Other processes write into the same folder, so that a listing is old as soon as it is read.
    settings: dict[str, Any] = {"use_listings_cache": False} if scheme == "s3" else {}
    return cast(Path, UPath(f"{scheme}://{rest}", **settings))


def is_address(text: str) -> bool:
    """Tell whether a text is an address of a known kind of store."""
    return text.startswith(tuple(f"{name}://" for name in _STORES))


def is_remote(path: Path | None) -> bool:
    """Tell whether a path is an address."""
    return path is not None and not isinstance(path, Path)


def beside(path: Path, name: str) -> Path:
    """Return where a name lies beside a path; beside an address, in the working folder."""
    return Path(name) if is_remote(path) else path.absolute().with_name(name)


@contextmanager
def told(path: Path | None) -> Iterator[None]:
    """Tell what keeps us from a remote path as a UserError; that a file is missing stays as it is.

    What is no trouble with a store passes, as does everything where the path is local.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        client = type(error).__module__.partition(".")[0] in _CLIENTS
        if not is_remote(path) or not (client or isinstance(error, OSError)):
            raise
        remedy = _STORES[cast(Any, path).protocol][1]
        raise UserError(f"cannot reach {path}: {_first_line(error)} ({remedy})") from None


def opened(path: Path, *, block: int = BLOCK) -> BinaryIO:
    """Open a file to read bytes; a remote one is read in ranges of `block` bytes.

    FileNotFoundError where there is none. A remote file that cannot be read for another reason is a
    UserError, now and later: a network that fails must end a build, not set its studies aside.
    """
    if not is_remote(path):
        return path.open("rb")
    return _Blocks(_Ranges(path), block)


class _Blocks(io.BufferedReader):
    """Asks for whole blocks alone, and for none that it holds."""

    raw: _Ranges

    def read1(self, size: int = -1) -> bytes:
        self.peek()  # TextIOWrapper wants 8 KiB, which would be a request
        return super().read1(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:  # which would drop the block
            offset, whence = self.raw.size + offset, io.SEEK_SET
        return super().seek(offset, whence)


class _Ranges(io.RawIOBase):
    """A file of a store; each read is one request."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.at = 0
        with told(path):
            self.size = path.stat().st_size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        self.at = max(0, start + offset)
        return self.at

    def tell(self) -> int:
        return self.at

    def _take(self, length: int) -> bytes:
        end = min(self.size, self.at + length)
        if end <= self.at:
            return b""
        place = cast(Any, self.path)
        with told(self.path):
            content = bytes(place.fs.cat_file(place.path, start=self.at, end=end))
        self.at += len(content)
        return content

    def readinto(self, buffer: Any) -> int:
        content = self._take(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def readall(self) -> bytes:
        return self._take(self.size)


def put(path: Path, content: bytes) -> None:
    """Write a file of a store, in one request: it is there whole, or not at all."""
    with told(path):
        path.write_bytes(content)


def make_folder(path: Path) -> None:
    """Make a folder; a store has none to make, and its bucket must be there."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)
        return
    bucket = Path(cast(Any, path).path).parts[0]
    with told(path):
        try:
            cast(Any, path).fs.ls(bucket)
        except FileNotFoundError:
            raise UserError(f"{path}: there is no bucket {bucket!r}; make it first") from None


def files_below(folder: Path) -> list[str]:
    """Return the paths of all files below a folder of a store, from the folder, by few requests."""
    place = cast(Any, folder)
    start = len(place.path.rstrip("/")) + 1
    with told(folder):
        return [file[start:] for file in place.fs.find(place.path)]


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it, if it is there."""
    if not is_remote(path):
        shutil.rmtree(path, ignore_errors=True)
        return
    with told(path):
        if path.exists():
            cast(Any, path).fs.rm(cast(Any, path).path, recursive=True)


def fetched(folder: Path) -> Path:
    """Return a copy on this machine of a folder of a store; what was copied before is not again.

    Copies lie in the user's cache, each under the hash of the folder's address and `manifest.json`.
    """
    place = cast(Any, folder)
    with told(folder):
        try:
            mark = hashlib.sha256(f"{folder}\n".encode() + (folder / "manifest.json").read_bytes())
        except FileNotFoundError:
            raise UserError(f"{folder} has no manifest.json, or none that you may read") from None
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cot-builder"
        copy = cache / "datasets" / mark.hexdigest()
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=copy.parent) as scratch:
                whole = Path(scratch) / "whole"
                place.fs.get(place.path.rstrip("/") + "/", f"{whole}/", recursive=True)
                whole.rename(copy)
    return copy


def _first_line(error: Exception) -> str:
    text = str(getattr(error, "strerror", None) or error).strip()
    return text.splitlines()[0] if text else type(error).__name__
