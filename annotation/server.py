"""A Label Studio server of one's own: its environment, its account, and its start.

Label Studio does not live with the training stack (it wants an older openai and pyarrow), so it has
an environment of its own, made once and kept in the user's cache folder. The server listens on
127.0.0.1 only, keeps everything below one folder that only its owner can read, sends nothing out,
lets nobody sign up without the lead's link, and serves images from one folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from cot_builder.errors import UserError

VERSION: Final = "1.23.2"
PINS: Final = Path(__file__).with_name("label-studio-constraints.txt")
ACCOUNT: Final = "account.json"
LOG: Final = "label-studio.log"
EMAIL: Final = "lead@label-studio.local"
# Seconds; the first start makes the database, which takes minutes on a busy machine.
START_LIMIT: Final = 600
# Label Studio writes every export into its folder, report texts and all.
_LEAVINGS: Final = ("export", "media/export")

Tell = Callable[[str], None]


class Account(NamedTuple):
    """How to get into a server, and where its images lie; kept in the server's folder."""

    url: str
    email: str
    password: str
    token: str
    images: str


def cache_folder() -> Path:
    """Return where environments are kept between runs: `XDG_CACHE_HOME`, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cot-builder"


def install(tell: Tell, *, cache: Path | None = None) -> Path:
    """Return the Python of Label Studio's environment, which is made where it is not there yet."""
    folder = cache or cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    environment = folder / f"label-studio-{VERSION}"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs at once: the second waits and finds it made
        if not environment.exists():
            tell(f"Installing Label Studio {VERSION} into {environment}: some minutes, 1 GB, once")
            unfinished = environment.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            _run(sys.executable, "-m", "venv", str(unfinished))
            pip = (str(unfinished / "bin/python"), "-m", "pip", "--disable-pip-version-check")
            _run(*pip, "install", "--quiet", "--requirement", str(PINS))
            unfinished.rename(environment)
    return environment / "bin" / "python"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(
            f"Label Studio could not be installed: {' '.join(command)} ended with status "
            f"{done.returncode}: {done.stderr.strip()[-500:]}"
        )


@contextmanager
def serving(
    folder: Path, images: Path, *, port: int = 8080, tell: Tell = print, cache: Path | None = None
) -> Iterator[tuple[Account, subprocess.Popen[bytes]]]:
    """Run a server until the block ends; give its account and its process.

    `folder` holds the database, the account and the log. UserError where the port is taken, the
    images are no folder, or the server does not start.
    """
    images = images.resolve()
    if not images.is_dir() or images == images.parent:
        raise UserError(f"--images {images}: expected the folder at which the image paths start")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    with socket.socket() as probe:
        # Label Studio would silently take the next port.
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UserError(
                f"--port {port} is taken on 127.0.0.1; name another, as --port {port + 1}"
            )
    account = _account(folder, images, port)
    python = install(tell, cache=cache)
    tell(f"Starting Label Studio {VERSION} in {folder} (the first time takes a minute or two)")
    with _private(folder / LOG, os.O_APPEND) as log:
        process = subprocess.Popen(
            _command(python, port), env=_environment(folder, images, account), cwd=folder,
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, umask=0o077, start_new_session=True,
        )  # fmt: skip
    try:
        _await(account.url, process, folder / LOG)
        yield account, process
    finally:
        stop(process)
        purge(folder)


def stop(process: subprocess.Popen[bytes], *, limit: float = 20) -> None:
    """End a server, the hard way where it does not end by itself."""
    process.terminate()
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def purge(folder: Path) -> None:
    """Remove the copies of exports that Label Studio leaves in its folder."""
    for leavings in _LEAVINGS:
        for path in (folder / leavings).rglob("*"):  # the server wants the folders themselves
            if path.is_file():
                path.unlink(missing_ok=True)


def read_account(folder: Path) -> Account:
    """Return the account of the server of a folder; UserError where there is none."""
    try:
        return Account(**json.loads((folder / ACCOUNT).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(
            f"no server was started in {folder}: `cot-builder review serve --folder {folder}` "
            "starts one; for a server elsewhere give --url, and its token in LABEL_STUDIO_API_KEY"
        ) from None
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{folder / ACCOUNT} is damaged ({error}); remove it and serve again"
        ) from None


def _account(folder: Path, images: Path, port: int) -> Account:
    """Return the account of a folder, new where it is the first start, and keep it."""
    path = folder / ACCOUNT
    old = read_account(folder) if path.is_file() else None
    account = Account(
        url=f"http://127.0.0.1:{port}",
        email=EMAIL,
        password=old.password if old else secrets.token_urlsafe(15),
        token=old.token if old else secrets.token_hex(20),
        images=str(images),
    )
    with _private(path, os.O_TRUNC) as stream:
        stream.write(json.dumps(account._asdict(), indent=2).encode())
    return account


def _private(path: Path, how: int) -> BinaryIO:
    """Open a file to write that only its owner can read: tokens, report texts in the log."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o600), "wb")


def _command(python: Path, port: int) -> list[str]:
    return [
        str(python), "-m", "label_studio.server", "start", "--no-browser",
        "--internal-host", "127.0.0.1", "--port", str(port), "--log-level", "WARNING",
    ]  # fmt: skip


def _environment(folder: Path, images: Path, account: Account) -> dict[str, str]:
    """Return all that the server sees of the environment: a stray USERNAME or HOST would count."""
    return {
        "HOME": str(folder),
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "DJANGO_DB": "sqlite",
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "LABEL_STUDIO_USERNAME": account.email,
        "LABEL_STUDIO_PASSWORD": account.password,
        "LABEL_STUDIO_USER_TOKEN": account.token,
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "LOCAL_FILES_SERVING_ENABLED": "true",
        # A project's storage has to lie below the document root; only storages are served.
        "LOCAL_FILES_DOCUMENT_ROOT": str(images.parent),
        # Off by default, and then predictions are taken whatever they say.
        "fflag_feat_utc_210_prediction_validation_15082025": "true",
    }


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server answers with the version that was installed."""
    end = time.monotonic() + START_LIMIT
    while time.monotonic() < end:
        if process.poll() is not None:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
            raise UserError(f"Label Studio ended while starting; {log} says: {' / '.join(last)}")
        with suppress(urllib.error.URLError, OSError, ValueError):
            with urllib.request.urlopen(f"{url}/api/version", timeout=10) as answer:
                version = json.load(answer)["label-studio-os-package"]["version"]
            if version != VERSION:
                raise UserError(f"{url} is Label Studio {version}, not the {VERSION} just started")
            return
        time.sleep(0.5)
    raise UserError(f"Label Studio did not answer within {START_LIMIT} s; see {log}")
