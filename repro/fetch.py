"""Fetch a published file: held against its digest, under its final name whole or not at all, never less safely.

What is published at an https address comes over https or not at all: not from a redirect to http, nor from a second
try. A plain http address is taken only because a digest guards what comes from it.
"""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO, Any
from urllib.parse import urlsplit

from repro.files import is_alive

TIMEOUT_S = 10.0  # in which LEAST_BYTES have to come: the look-up of the name and the answer's head count as well
LEAST_BYTES = 10_000  # a kilobyte per second; at that pace the largest set would take days
LIMIT_BYTES = 1_000_000_000  # the largest file that is published for us has 0.53 GB
PIECE_BYTES = 1 << 18


class FetchError(Exception):
    """Why a file was not fetched: its address and one phrase."""


@dataclass(frozen=True)
class Published:
    """A file as its publisher names it: the addresses that have it, and the digest, or how the digest begins."""

    name: str
    urls: Sequence[str]
    algorithm: str  # as `hashlib` calls it
    digest: str

    def is_at(self, path: Path) -> bool:
        """Whether the file at `path` is this one."""
        if not path.is_file():
            return False
        with path.open("rb") as f:
            return hashlib.file_digest(f, self.algorithm).hexdigest().startswith(self.digest)


def refuse_offline() -> None:
    """Raise FetchError where the environment forbids the network."""
    if os.environ.get("REPRO_OFFLINE"):
        raise FetchError("REPRO_OFFLINE is set; unset it to allow a download")


def fetch_file(file: Published, folder: Path) -> None:
    """Fetch a file into `folder` from the first address that has it.

    Raises FetchError with what was wrong at each of the addresses, and OSError when the disk refuses.
    """
    refuse_offline()
    for left in folder.glob(f".{file.name}.*.half"):
        pid = left.suffixes[-2][1:]
        if pid.isdecimal() and not is_alive(int(pid)):
            left.unlink(missing_ok=True)
    half = folder / f".{file.name}.{os.getpid()}.half"
    faults = []
    try:
        for url in file.urls:
            try:
                _Transfer(url, file.algorithm, file.digest).into(half)
            except FetchError as e:
                faults.append(f"{url}: {e}")
            else:
                return os.replace(half, folder / file.name)
        raise FetchError(" and ".join(faults))
    finally:
        half.unlink(missing_ok=True)


class _Transfer:
    """One file on its way. It runs in a thread of its own: a name is looked up without a limit in time."""

    def __init__(self, url: str, algorithm: str, digest: str) -> None:
        self.url, self.hash, self.digest = url, hashlib.new(algorithm), digest
        self.received = 0
        self.given_up = False

    def into(self, path: Path) -> None:
        """Write the file to `path` and on to the disk; raises FetchError, or OSError when the disk refuses."""
        outcome: Future[None] = Future()
        with path.open("wb") as f:
            Thread(target=self._run, args=(f, outcome), daemon=True).start()
            try:
                before = 0
                while not wait([outcome], TIMEOUT_S).done:
                    if self.received - before < LEAST_BYTES:
                        raise FetchError(
                            f"too slow: {self.received - before:,} bytes in {TIMEOUT_S:g} s, expected {LEAST_BYTES:,}"
                        )
                    before = self.received
            finally:
                self.given_up = True
            outcome.result()
            f.flush()
            os.fsync(f.fileno())
        if not self.hash.hexdigest().startswith(self.digest):
            raise FetchError(
                f"not the published file: the {self.hash.name} of what came is {self.hash.hexdigest()}, expected "
                f"{self.digest}"
            )

    def _run(self, f: IO[bytes], outcome: Future[None]) -> None:
        try:
            for piece in _pieces(self.url):
                if self.given_up:
                    break
                f.write(piece)
                self.received += len(piece)
                self.hash.update(piece)
            outcome.set_result(None)
        except Exception as e:
            outcome.set_exception(e)


def _pieces(url: str) -> Iterator[bytes]:
    """The content of an address in pieces, as they come; raises FetchError."""
    try:
        # The timeout is of a single step, and ends a transfer that was given up.
        with urllib.request.build_opener(_Redirects).open(url, timeout=2 * TIMEOUT_S) as response:
            if response.headers.get_content_type() == "text/html":
                raise FetchError("the answer is a web page; this network may want you to log in with a browser first")
            announced, received = response.length, 0
            while piece := response.read1(PIECE_BYTES):
                received += len(piece)
                if max(received, announced or 0) > LIMIT_BYTES:
                    raise FetchError(f"too long: over {LIMIT_BYTES:,} bytes")
                yield piece
    except (OSError, http.client.HTTPException, ValueError) as e:
        raise FetchError(_reason(e)) from e
    if announced is not None and received != announced:
        raise FetchError(f"cut off: {received:,} of {announced:,} bytes came")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to another address as long as it is as safe as the one before."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """The next request; raises FetchError where it would leave https."""
        target = urlsplit(newurl)
        if target.scheme != "https" and (req.type, target.scheme) != ("http", "http"):
            raise FetchError(f"sent on to {target.scheme}://{target.netloc}, which is less safe; not followed")
        fp.close()  # a body that goes with it would be read to its end, however long
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _reason(e: Exception) -> str:
    """One line on what went wrong, without words of the server's own."""
    if isinstance(e, urllib.error.HTTPError):
        e.close()
        if 300 <= e.code < 400:
            return "sent on in a circle, or to no web address"
        return f"the server says {e.code} {http.client.responses.get(e.code, '')}".rstrip()
    if isinstance(e, urllib.error.URLError) and isinstance(e.reason, Exception):
        e = e.reason
    if isinstance(e, http.client.HTTPException):
        return f"the answer is garbled or cut off ({type(e).__name__})"
    return " ".join(str(getattr(e, "strerror", None) or e).split()) or type(e).__name__
