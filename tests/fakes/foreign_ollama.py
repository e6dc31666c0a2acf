"""An Ollama that someone else has started on this machine, as its process and `/api/version` show it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SERVE = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "21")
        self.end_headers()
        self.wfile.write(b'{"version": "0.33.0"}')
    def log_message(self, *_): pass
server = HTTPServer(("127.0.0.1", 0), Answers)
print(server.server_port, flush=True)
server.serve_forever()
"""


@dataclass(frozen=True, slots=True)
class ForeignOllama:
    """Its process, and where it listens."""

    pid: int
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def foreign_ollama(folder: Path, **environment: str) -> Iterator[ForeignOllama]:
    """A real process with Ollama's name, arguments and this environment, on a port of the system's choice."""
    folder.mkdir(exist_ok=True)
    (folder / "ollama").symlink_to(Path(sys.executable).resolve())
    (folder / "serve").write_text(_SERVE)
    command = [str(folder / "ollama"), "serve"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        try:
            yield ForeignOllama(process.pid, int(process.stdout.readline()))
        finally:
            process.kill()
