"""Large files over HTTP: whole and with the right checksum or not at all, and gone on with after a cut."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import create_connection
from typing import IO
from urllib.parse import urlsplit

from gentk.errors import RunFailed

_PATIENCE = 1.5  # seconds; a host that takes no connection by then counts as out of reach
_SILENCE = 30.0  # seconds without a byte; a connection counts as broken then
_BLOCK = 2**20

Progress = Callable[[int, int | None], None]
"""(bytes here, bytes in all or None where the server does not say): called with every block."""


class Unreachable(Exception):
    """There is no network, or no such file at the address; the message says which."""


def fetch(url: str, path: Path, checksum: str = "", progress: Progress | None = None) -> None:
    """Downloads `url` to `path`; `checksum` holds the leading digits of its sha256, as many as are known.

    What came before a cut is gone on with: in this call as long as bytes come, and by the next call if there is a
    checksum to tell whether the pieces fit. Processes that want the same file wait for the first of them.
    Raises Unreachable, within 2 s if there is no network; RunFailed for a wrong checksum, what was fetched then being
    removed, and where the disk refuses.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(part) as file:
            if path.is_file():  # brought by another process while this one waited
                part.unlink()
                return
            if not checksum:
                file.truncate(0)
            _receive(url, file, progress)
            if not (found := digest(part)).startswith(checksum):
                part.unlink()
                raise RunFailed(
                    f"{url}: sha256 {found}, expected {checksum}{'' if len(checksum) == 64 else '...'}; removed",
                    hint="it was changed at its source or on the way: use it only if its publisher says so",
                )
            part.replace(path)
    except OSError as e:
        raise RunFailed(
            f"{path}: cannot be written: {e.strerror or e}",
            hint="free disk space, or set GENTK_CACHE to another folder",
        ) from e


def digest(path: Path) -> str:
    """The sha256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _locked(part: Path) -> Iterator[IO[bytes]]:
    """`part`, open for appending by this process alone."""
    while True:
        with part.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # The process that this one waited for may have renamed or removed it: then what is open is not `part`.
            if _is_at(part, file):
                yield file
                return


def _is_at(path: Path, file: IO[bytes]) -> bool:
    """Whether `path` still leads to the open `file`. Asked once: it may go away between two questions."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _receive(url: str, file: IO[bytes], progress: Progress | None) -> None:
    """Appends the rest of `url` to `file`, connecting anew as often as that brings bytes."""
    reach(url)
    while True:
        start = os.fstat(file.fileno()).st_size
        try:
            if _append(url, file, start, progress):
                return
            why = "the connection was cut"
        except urllib.error.HTTPError as e:
            e.close()  # it is the answer, too, and holds the connection
            if e.code == 416 and start:  # nothing is left to send
                return
            raise Unreachable(f"{url} answers {e.code} {e.reason}") from e
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as e:
            why = str(getattr(e, "reason", e))
        if os.fstat(file.fileno()).st_size <= start:
            raise Unreachable(f"{url}: {why}")


def _append(url: str, file: IO[bytes], start: int, progress: Progress | None) -> bool:
    """One connection; returns whether all came that was promised."""
    headers = {"User-Agent": "gentk"} | ({"Range": f"bytes={start}-"} if start else {})
    # An opener of its own: `urlopen` keeps the proxies of its first call.
    opener = urllib.request.build_opener()
    with opener.open(urllib.request.Request(url, headers=headers), timeout=_SILENCE) as response:
        if start and response.status != http.HTTPStatus.PARTIAL_CONTENT:
            file.truncate(0)  # it sends all of it again
            start = 0
        promised = response.headers.get("Content-Length")
        received = 0
        while block := response.read(_BLOCK):
            file.write(block)
            file.flush()
            received += len(block)
            if progress:
                progress(start + received, start + int(promised) if promised else None)
    return promised is None or received == int(promised)


def reach(url: str) -> None:
    """Raises Unreachable if the host of `url`, or its proxy, does not take a connection soon.

    In a thread of its own: a look-up of the name cannot be told to give up.
    """
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    answers: list[str] = []

    def knock() -> None:
        try:
            create_connection((parts.hostname, port), timeout=_PATIENCE).close()
            answers.append("")
        except OSError as e:
            answers.append(e.strerror or str(e))

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    if why := answers[0] if answers else f"no answer within {_PATIENCE} s":
        raise Unreachable(f"{parts.hostname} is out of reach ({why})")
