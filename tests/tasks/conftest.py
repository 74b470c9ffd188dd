"""Settings that the tests of the tasks share, and a server of this machine's own."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

# Small tensors: more threads would wait for each other.
torch.set_num_threads(1)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Starts a mirror of tmp_path/mirror on the loopback; returns its address."""
    servers: list[http.server.ThreadingHTTPServer] = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            if self.path.endswith(".gz"):  # as some servers have it
                self.send_header("Content-Encoding", "x-gzip")
            super().end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    def start() -> str:
        handler = functools.partial(Quiet, directory=str(tmp_path / "mirror"))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
