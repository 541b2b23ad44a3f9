"""Row 11: no network, or a server that answers wrongly, slowly or not at all."""

import ctypes
import json
import os
import random
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from bad_server import WEIGHTS, WEIGHTS_FILE, BadServer, publish, serving
from tier import Finding, amount

from repro import cli, fetch, weights
from repro.data import load
from repro.errors import CheckpointError, DataError, ReproError, ResourceError

SETS = ("mnist", "fashion_mnist", "cifar10", "flowers")
WEB = "imagenet weights"
WRONG = {
    "cut off": "cut off: [0-9,]+ of [0-9,]+ bytes came",
    "cut off, in chunks": "garbled or cut off",
    "cut off, no length": "not the published file",
    "stated too long": "cut off: [0-9,]+ of [0-9,]+ bytes came",
    "stated too short": "not the published file",
    "one bit": "not the published file: the (md5|sha256) of what came is [0-9a-f]+, expected [0-9a-f]+",
    "empty": "not the published file",
    "404": "the server says 404 Not Found",
    "500": "the server says 500 Internal Server Error",
    "page": "a web page; this network may want you to log in with a browser first",
    "page called data": "not the published file",
    "circle": "sent on in a circle",
    "ping_pong": "sent on in a circle",
    "endless_redirect": "sent on in a circle",
    "to a file": "to no web address",
    "to http": "sent on to http://127.0.0.1:[0-9]+, which is less safe; not followed",
    "strange certificate": "CERTIFICATE_VERIFY_FAILED",
    "other host's certificate": "CERTIFICATE_VERIFY_FAILED",
    "no web server": "garbled or cut off",
    "claims a terabyte": "too long: over 1,000,000 bytes",
    "endless": "too long: over 1,000,000 bytes",
    "refused": "Connection refused",
    "unknown name": "Name or service not known",
}
OF_HTTPS = {"to http", "strange certificate", "other host's certificate"}
SLOW = ("drip", "slow_head", "silent", "hanging name")
WRONG_S, TIMEOUT_S = 2.0, 0.3
REAL_LOOK_UP = socket.getaddrinfo


@pytest.fixture
def server(tmp_path: Path, data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BadServer]:
    """A bad server in the place of all publishers, whose certificate is trusted; and the network allowed."""
    (tmp_path / "web").mkdir()
    monkeypatch.delenv("REPRO_OFFLINE")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "web" / "trusted.pem"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(fetch, "LIMIT_BYTES", 1_000_000)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(cache / "hub"))
    with serving(tmp_path / "web") as bad:
        publish(bad, monkeypatch)
        yield bad


def attempt(what: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, float]:
    """Prepare a set by the command line, or load torchvision's weights: the exit code, stderr and seconds it took."""
    capfd.readouterr()
    started = time.monotonic()
    code = 0
    try:
        if what == WEB:
            with suppress(CheckpointError):  # the small file that stands for the weights is of no net
                weights.load("flowers-report", weights="imagenet")
        else:
            sys.argv = ["repro", "data", "prepare", what]
            cli.main()
    except ReproError as e:
        code = e.exit_code
        print(f"repro: {e}", file=sys.stderr)
    except SystemExit as e:
        code = int(e.code or 0)
    return code, capfd.readouterr().err, time.monotonic() - started


def files(cache: Path) -> list[Path]:
    """Whatever lies in the cache, half-made or not."""
    return [p for p in cache.rglob("*") if p.is_file()]


def require_remedy(what: str, fault: str, code: int, line: str, cache: Path) -> None:
    """One line with the object, the address, what was wrong there and what to do."""
    assert line.count("\n") == 1, (what, fault, line)
    assert line[:-1].isprintable(), (what, fault, line)
    if what == WEB:
        assert code == ResourceError.exit_code
        file = cache / "hub" / "checkpoints" / WEIGHTS_FILE
        assert line.startswith(f"repro: {file}: torchvision's weights are not there and cannot be fetched (")
        assert f"/{WEIGHTS_FILE} there, or use weights=" in line
    else:
        assert code == DataError.exit_code
        assert line.startswith(f"repro: {what}: not in the cache, not under REPRO_DATA, and not downloaded (")
        assert f"run `repro data prepare {what}` with a network connection, or set REPRO_DATA to" in line
        assert f"or copy a prepared cache folder to {cache / what}\n" in line


@dataclass
class Tally:
    """What was counted over all attempts."""

    attempts: int = 0
    slowest_s: float = 0.0
    over_http: int = 0
    partial: list[Path] = field(default_factory=list)

    def count(self, what: str, seconds: float, server: BadServer) -> None:
        self.attempts += 1
        self.slowest_s = max(self.slowest_s, seconds)
        self.over_http += what != "fashion_mnist" and sum(scheme == "http" for scheme, _ in server.asked)


def go_wrong(fault: str, server: BadServer, patch: pytest.MonkeyPatch) -> None:
    """Set the fault: at the server, or on the way to it."""
    if fault == "refused":
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            publish(server, patch, f"127.0.0.1:{closed.getsockname()[1]}")
    elif fault in ("unknown name", "hanging name"):
        publish(server, patch, "publisher.invalid")
        ended = threading.Event()

        def look_up(host: str, *rest: object, **named: object) -> object:
            if host != "publisher.invalid":
                return REAL_LOOK_UP(host, *rest, **named)  # type: ignore[arg-type]
            if fault == "hanging name":
                ended.wait(5)
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        patch.setattr(socket, "getaddrinfo", look_up)
    else:
        server.fault = fault


def and_then_whole(what: str, server: BadServer, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The remedy works: with a good server the same command succeeds."""
    server.fault = "whole"
    code, line, _ = attempt(what, capfd)
    assert (code, line) == (0, ""), (what, line)
    assert not list(cache.rglob("*.half"))
    if what == WEB:
        file = cache / "hub" / "checkpoints" / WEIGHTS_FILE
        assert file.read_bytes() == WEIGHTS
        file.unlink()
    else:
        assert load(what).digest
    for path in files(cache):
        path.unlink()
    for folder in sorted(cache.rglob("*"), reverse=True):
        folder.rmdir()


@pytest.mark.timeout(300)
def test_wrong_answers(
    server: BadServer,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    finding: Finding,
) -> None:
    """Catches a second try over http, a redirect that leaves https, half a file or a login page that is kept, a disk
    that an endless answer fills, a traceback of urllib's, words of the server's on the terminal, a message of several
    lines, and what a failed try leaves behind and the next one takes.
    """
    monkeypatch.setattr(sys, "argv", [])
    tally, retried = Tally(), 0
    for what in (*SETS, WEB):
        for fault, reason in WRONG.items():
            if fault in OF_HTTPS and what == "fashion_mnist":  # it is published at an http address
                continue
            server.asked.clear()
            with monkeypatch.context() as patch:
                go_wrong(fault, server, patch)
                code, line, seconds = attempt(what, capfd)
                if seconds >= WRONG_S:  # a program that waits is as slow again, a machine that was busy is not
                    code, line, seconds = attempt(what, capfd)
            tally.count(what, seconds, server)
            tally.partial += files(cache)
            require_remedy(what, fault, code, line, cache)
            assert re.search(reason, line), (what, fault, line)
            assert seconds < WRONG_S, (what, fault, seconds)
            if fault in amount(("cut off", "unknown name"), tuple(WRONG)):
                and_then_whole(what, server, cache, capfd)
                retried += 1
    assert tally.over_http == 0
    assert tally.partial == []
    finding(
        f"{tally.attempts} downloads (four sets, torchvision's weights) meet one of {len(WRONG)} wrong answers",
        f"one line with the remedy each time, after {tally.slowest_s:.1f} s at most; {tally.over_http} requests over "
        f"http for what is published over https; {len(tally.partial)} files left; {retried} of {retried} next tries "
        "succeed",
    )


@pytest.mark.timeout(300)
def test_slow_answers(
    server: BadServer,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    finding: Finding,
) -> None:
    """Catches a time limit on single bytes, which a server that sends one now and then never meets, none on the look-up
    of the name or the answer's head, and one on the whole file, which a large one over a slow line never keeps.
    """
    monkeypatch.setattr(fetch, "TIMEOUT_S", TIMEOUT_S)
    monkeypatch.setattr(fetch, "LEAST_BYTES", 100)
    tally = Tally()
    for what in amount(("mnist", WEB), (*SETS, WEB)):
        for fault in SLOW:
            server.asked.clear()
            with monkeypatch.context() as patch:
                go_wrong(fault, server, patch)
                code, line, seconds = attempt(what, capfd)
            tally.count(what, seconds, server)
            assert not files(cache)
            require_remedy(what, fault, code, line, cache)
            assert re.search(f"too slow: [0-9]+ bytes in {TIMEOUT_S} s, expected 100", line), (what, fault, line)
            assert TIMEOUT_S <= seconds < 2 * TIMEOUT_S + WRONG_S, (what, fault, seconds)
    server.fault = "steady"
    monkeypatch.setattr(fetch, "LEAST_BYTES", 10)
    code, line, seconds = attempt(WEB, capfd)
    assert (code, line) == (0, "")
    assert seconds > 2 * TIMEOUT_S
    assert (cache / "hub" / "checkpoints" / WEIGHTS_FILE).read_bytes() == WEIGHTS
    assert tally.over_http == 0
    finding(
        f"{tally.attempts} downloads that drip, stop or never begin, under a limit of {TIMEOUT_S} s",
        f"given up after {tally.slowest_s:.1f} s at most; a steady one of {seconds:.1f} s is not",
    )


def whole_files(cache: Path) -> list[Path]:
    """What lies in the cache under a final name."""
    return [p for p in files(cache) if not any(part.endswith(".half") for part in p.parts)]


@pytest.mark.timeout(300)
def test_killed_while_downloading(
    server: BadServer, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], finding: Finding
) -> None:
    """Catches a download that grows under its final name, where the next process takes it for whole, and halves that
    nobody removes.
    """
    draw, kills = random.Random(0), 0
    for what in ("mnist", WEB) * amount(1, 10):
        server.fault, reached = "stalling", threading.Event()
        server.halfway = reached.set
        pid = os.fork()
        if pid == 0:
            try:
                attempt(what, capfd)
            finally:
                os._exit(1)
        assert reached.wait(30)
        time.sleep(draw.uniform(0, 0.2))
        os.kill(pid, signal.SIGKILL)
        kills += os.waitpid(pid, 0)[1] == signal.SIGKILL
        assert files(cache)  # what it had of the file
        assert not whole_files(cache)
        and_then_whole(what, server, cache, capfd)
    assert kills == 2 * amount(1, 10)
    finding(f"{kills} kills in the middle of a download", "nothing under the final name; the next try leaves no litter")


CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000


def leave_the_network() -> None:
    """Nothing can be reached from this process any more: a name space without interfaces, or sockets that say so."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0:
        return

    def unreachable(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    socket.getaddrinfo = unreachable  # type: ignore[assignment]


@pytest.mark.parametrize("offline", [False, True])
def test_no_network(
    offline: bool,
    tmp_path: Path,
    data: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    finding: Finding,
) -> None:
    """Catches a wait for an answer that cannot come, `REPRO_OFFLINE` that weights do not heed, advice that does not
    name it, and a chapter that stops where it could go on with the digits.
    """
    if offline:
        monkeypatch.setenv("REPRO_OFFLINE", "1")
        monkeypatch.setattr(socket, "socket", None)  # not even tried
    else:
        monkeypatch.delenv("REPRO_OFFLINE")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(cache / "hub"))
    slowest = 0.0
    for what in (*SETS, WEB):
        result = tmp_path / "result"
        pid = os.fork()
        if pid == 0:
            try:
                if not offline:
                    leave_the_network()
                code, line, seconds = attempt(what, capfd)
                other = "" if what == WEB else load(what, fallback="digits").name
                result.write_text(json.dumps([code, line, seconds, other]))
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        code, line, seconds, other = json.loads(result.read_text())
        assert seconds < WRONG_S, (what, seconds)
        slowest = max(slowest, seconds)
        assert ("REPRO_OFFLINE is set; unset it to allow a download" in line) == offline
        if what == WEB:
            assert (code, line.count("\n")) == (ResourceError.exit_code, 1)
            assert re.search(r"cannot be fetched \(.*\); put https://.*\.pth there, or use weights=", line)
        else:
            assert other == "digits"
            require_remedy(what, "no network", code, line, cache)
        assert not [p for p in files(cache) if "digits" not in p.parts]
    finding(
        f"{len(SETS)} sets and torchvision's weights " + ("with REPRO_OFFLINE" if offline else "without a network"),
        f"one line with the remedy after {slowest:.1f} s at most, or the digits where a chapter asks for them",
    )
