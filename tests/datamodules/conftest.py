"""Shards for tests: sixty small pictures as a folder, as shards, and behind an HTTP server that can be made
to fail.
"""

from __future__ import annotations

import http.server
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules.images import remote
from datamodules.images.pack import make_shards

CLASSES = ("apple", "pear", "plum")


def picture(number: int, size: tuple[int, int] = (20, 17)) -> Image.Image:
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 PNG files of three classes; the pixels tell which file it was."""
    root = tmp_path_factory.mktemp("source")
    for i in range(60):
        folder = root / CLASSES[i % 3]
        folder.mkdir(exist_ok=True)
        picture(i).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("made") / "shards"
    make_shards(source, made, per_shard=16)
    return made


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "shards"))


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files with ranges; ``faults`` holds what the next answers are instead."""

    def do_GET(self) -> None:
        server: Any = self.server
        server.asked.append((self.path, self.headers.get("Range")))
        fault = server.faults.pop(0) if server.faults and "Range" in self.headers else None
        if fault == "hang":
            server.release.wait(5)
            return
        if isinstance(fault, int):
            self.send_error(fault)
            return
        path = Path(server.folder) / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None or fault == "no ranges":
            self.send_response(200)
        else:
            part = content[int(wanted[1]) : int(wanted[2]) + 1]
            if not part:
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {wanted[1]}-{wanted[2]}/{len(content)}")
            content = part
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.folder, server.faults, server.asked, server.release = folder, [], [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()
