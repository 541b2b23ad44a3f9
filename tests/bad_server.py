"""A server on this machine that goes wrong on purpose, over http and https at one port, and small sets behind it."""

import contextlib
import gzip
import hashlib
import io
import pickle
import socket
import socketserver
import ssl
import struct
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from helpers import encode
from PIL import Image
from torchvision import datasets

from repro.data import download, sources

Send = Callable[[bytes], None]
DRIP_S = 0.02
PLAIN = "/plain/"  # what is published under it is published at an http address
TLS_HANDSHAKE = b"\x16"


def answer(
    content: bytes, length: object = None, kind: str = "application/octet-stream", status: str = "200 OK"
) -> bytes:
    """A whole answer of a web server, whatever length it states."""
    length = len(content) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n".encode() + content


def redirect(to: str, content: bytes = b"") -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content


class BadServer(socketserver.ThreadingTCPServer):
    """Serves `content` by path as `fault` says. `asked` holds (scheme, path) of each request.

    An http request for what is published at an https address gets it whole: whoever tries again over http, succeeds.
    """

    daemon_threads, block_on_close, allow_reuse_address, request_queue_size = True, False, True, 64

    def __init__(self, certificates: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.fault = "whole"
        self.halfway: Callable[[], None] = lambda: None  # called when half an answer is out
        self.contexts = {}
        for name, path in certificates.items():
            self.contexts[name] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.contexts[name].load_cert_chain(path)

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def reply(self, scheme: str, path: str, send: Send) -> None:
        """Answer one request."""
        name = path.rsplit("/", 1)[1]
        content = self.content[name]
        if scheme == "http" and not path.startswith(PLAIN):
            return send(answer(content))
        fault = getattr(self, f"_{self.fault}", None)
        if fault is None:
            return send(self._whole_answers(content, f"{scheme}://{self.place}{path}", path)[self.fault])
        return fault(send, content)

    def _whole_answers(self, content: bytes, here: str, path: str) -> dict[str, bytes]:
        page = b"<!DOCTYPE html><title>Welcome to this hotel</title>"
        half = len(content) // 2
        return {
            "whole": answer(content),
            "strange certificate": answer(content),
            "other host's certificate": answer(content),
            "cut off": answer(content[:half], len(content)),
            "cut off, in chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b"
            % (len(content), content[:half]),
            "stated too long": answer(content, len(content) + 7),
            "stated too short": answer(content, len(content) - 7),
            "cut off, no length": b"HTTP/1.0 200 OK\r\n\r\n" + content[:half],
            "one bit": answer(content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]),
            "empty": answer(b""),
            "404": answer(page, kind="text/html", status="404 Not Found"),
            "500": answer(page, kind="text/html", status="500 \x1b[31mOops"),
            "page": answer(page, kind="text/html; charset=utf-8"),
            "page called data": answer(page),
            "circle": redirect(here),
            "to http": redirect(f"http://{self.place}{path}"),
            "to a file": redirect(Path(__file__).as_uri()),
            "no web server": b"SSH-2.0-OpenSSH_9.6\r\n",
            "claims a terabyte": answer(content, 2**40),
        }

    def _ping_pong(self, send: Send, content: bytes) -> None:
        send(redirect(f"?{len(self.asked) % 2}"))

    def _endless(self, send: Send, content: bytes) -> None:
        send(b"HTTP/1.0 200 OK\r\n\r\n")
        while True:
            send(bytes(1 << 16))

    def _endless_redirect(self, send: Send, content: bytes) -> None:
        send(b"HTTP/1.0 302 Found\r\nLocation: ?again\r\n\r\n")
        while True:
            send(bytes(1 << 16))

    def _silent(self, send: Send, content: bytes) -> None:
        threading.Event().wait(5)

    def _drip(self, send: Send, content: bytes) -> None:
        send(answer(b"", len(content)))
        self._in_pieces(send, content, 1)

    def _slow_head(self, send: Send, content: bytes) -> None:
        self._in_pieces(send, b"HTTP/1.1 200 OK\r\nX-Long: " + bytes(b"x" * 60_000), 1)

    def _steady(self, send: Send, content: bytes) -> None:
        whole = answer(content)
        self._in_pieces(send, whole, len(whole) // 40 + 1)

    def _stalling(self, send: Send, content: bytes) -> None:
        half = len(content) // 2
        send(answer(content[:half], len(content)))
        self.halfway()
        self._in_pieces(send, content[half:], 1)

    def _in_pieces(self, send: Send, whole: bytes, size: int) -> None:
        for start in range(0, len(whole), size):
            send(whole[start : start + size])
            time.sleep(DRIP_S)


class _Handler(socketserver.BaseRequestHandler):
    server: BadServer

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # a client that has had enough
            scheme, connection = "http", self.request
            if connection.recv(1, socket.MSG_PEEK) == TLS_HANDSHAKE:
                contexts = self.server.contexts
                context = contexts.get(self.server.fault, contexts["trusted"])
                scheme, connection = "https", context.wrap_socket(connection, server_side=True)
            head = b""
            while b"\r\n\r\n" not in head:
                received = connection.recv(4096)
                if not received:
                    return
                head += received
            path = head.split(b" ")[1].decode().partition("?")[0]
            self.server.asked.append((scheme, path))
            self.server.reply(scheme, path, connection.sendall)
            if scheme == "https":
                connection.unwrap()


def make_certificate(folder: Path, name: str, host: str) -> Path:
    """A key and a certificate that it signs itself, in one file."""
    path, key = folder / f"{name}.pem", folder / f"{name}.key"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    about = ["-days", "2", "-subj", "/CN=test", "-addext", f"subjectAltName={host}"]
    call = ["openssl", "req", "-x509", *kind, *about, "-keyout", key, "-out", path]
    subprocess.run(call, check=True, capture_output=True)
    path.write_text(path.read_text() + key.read_text())
    return path


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[BadServer]:
    """A server in threads of its own. Its certificate is trusted where SSL_CERT_FILE names `folder/trusted.pem`."""
    hosts = {
        "trusted": "IP:127.0.0.1",
        "strange certificate": "IP:127.0.0.1",
        "other host's certificate": "IP:127.9.9.9",
    }
    certificates = {name: make_certificate(folder, name, host) for name, host in hosts.items()}
    both = certificates["trusted"].read_text() + certificates["other host's certificate"].read_text()
    with BadServer(certificates) as server:
        certificates["trusted"].write_text(both)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def idx(array: np.ndarray) -> bytes:
    """MNIST's format: two zeros, the type 8, the number of axes, their lengths in big-endian, the bytes."""
    return gzip.compress(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes(), mtime=0)


def tar(files: dict[str, bytes]) -> bytes:
    """An archive of these files, packed with gzip."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


PER_SPLIT = 10
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (PER_SPLIT, 28, 28), dtype=np.uint8)
COLOURS = RNG.integers(0, 256, (PER_SPLIT, 3072), dtype=np.uint8)
IDX = {
    f"{part}-{kind}-ubyte.gz": idx(array)
    for part in ("train", "t10k")
    for kind, array in (("images-idx3", PIXELS), ("labels-idx1", np.arange(PER_SPLIT, dtype=np.uint8)))
}
BATCH = pickle.dumps({"data": COLOURS, "labels": list(range(PER_SPLIT))})
NAMES = pickle.dumps({"label_names": list(sources.CIFAR10_CLASSES)})
CIFAR10 = tar(
    {f"cifar-10-batches-py/{name}": BATCH for name in ("data_batch_1", "test_batch")}
    | {"cifar-10-batches-py/batches.meta": NAMES}
)
FLOWERS = tar(
    {
        f"flower_photos/{kind}/{i}.jpg": encode(Image.new("RGB", (8, 6), (25 * i, 0, 0)), "JPEG")
        for kind in sources.FLOWER_CLASSES
        for i in range(PER_SPLIT)
    }
)


def _weights() -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(5000.0)}, buffer)
    return buffer.getvalue()


WEIGHTS = _weights()
WEIGHTS_FILE = f"alexnet-owt-{hashlib.sha256(WEIGHTS).hexdigest()[:8]}.pth"


def publish(server: BadServer, patch: pytest.MonkeyPatch, place: str | None = None) -> None:
    """Put small sets and weights in the place of the real ones, at `place` or at this server."""
    place = place or server.place
    server.content = IDX | {
        datasets.CIFAR10.filename: CIFAR10,
        download.FLOWERS_ARCHIVE: FLOWERS,
        WEIGHTS_FILE: WEIGHTS,
    }
    for kind, mirrors in (
        (datasets.MNIST, [f"https://{place}/", f"http://{place}{PLAIN}"]),
        (datasets.FashionMNIST, [f"http://{place}{PLAIN}"]),
    ):
        patch.setattr(kind, "mirrors", mirrors)
        patch.setattr(kind, "resources", [(name, md5(content)) for name, content in IDX.items()])
    patch.setattr(datasets.CIFAR10, "url", f"https://{place}/{datasets.CIFAR10.filename}")
    patch.setattr(datasets.CIFAR10, "tgz_md5", md5(CIFAR10))
    patch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", md5(BATCH)]])
    patch.setattr(datasets.CIFAR10, "test_list", [["test_batch", md5(BATCH)]])
    patch.setattr(datasets.CIFAR10, "meta", datasets.CIFAR10.meta | {"md5": md5(NAMES)})
    patch.setattr(download, "FLOWERS_URL", f"https://{place}/{download.FLOWERS_ARCHIVE}")
    patch.setattr(download, "FLOWERS_SHA256", hashlib.sha256(FLOWERS).hexdigest())
    entry = torchvision.models.get_model_weights("alexnet").DEFAULT
    patch.setattr(type(entry), "url", property(lambda _: f"https://{place}/{WEIGHTS_FILE}"))
    for name, counts in (
        ("mnist", {"train": PER_SPLIT, "test": PER_SPLIT}),
        ("fashion_mnist", {"train": PER_SPLIT, "test": PER_SPLIT}),
        ("cifar10", {"train": PER_SPLIT, "test": PER_SPLIT}),
        ("flowers", {"train": 45, "val": 5}),
    ):
        spec = sources.SPECS[name]
        patch.setitem(
            sources.SPECS,
            name,
            sources.Spec("tiny", counts, spec.classes, spec.channels, 8 if name == "flowers" else None),
        )
