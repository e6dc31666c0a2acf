"""A server that behaves as a test asks: `python -m tests.fakes.misbehaving PORT CONDUCT [ARGUMENT]`.

It answers every GET with a version, as an Ollama does, and it is no Ollama."""

import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_LINE = b"level=INFO msg=flood " + b"x" * 79 + b"\n"
_BYTES = 100_000_000


class Handler(BaseHTTPRequestHandler):
    """A version for everyone, or an error once there is a file `bad` in `folder`, where it counts too."""

    folder: Path | None = None

    def do_GET(self) -> None:
        body = b'{"version": "0.0.0"}'
        bad = self.folder is not None and (self.folder / "bad").exists()
        if bad and self.folder is not None:
            with (self.folder / "asked").open("a") as asked:
                asked.write(f"{self.path}\n")
        self.send_response(503 if bad else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def exits(_argument: str) -> None:
    """End at once."""
    print("error: this never works", file=sys.stderr, flush=True)
    sys.exit(3)


def floods(_argument: str) -> None:
    """Write 100 MB, and one line without an end."""
    for _ in range(_BYTES // (1000 * len(_LINE)) + 1):
        sys.stderr.buffer.write(_LINE * 1000)
    sys.stderr.buffer.write(b"the last line " + b"y" * 1_000_000)
    sys.stderr.buffer.flush()


def babbles(_argument: str) -> None:
    """Write as many long lines as are kept, of bytes that take six each in JSON."""
    sys.stderr.buffer.write((b"\xff" * 2000 + b"\n") * 100)
    sys.stderr.buffer.flush()


def ignores_term(_argument: str) -> None:
    """Go on whatever it is told."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def leaves_children(folder: str) -> None:
    """Leave three behind: one in the group, one that has left it, one that forgot its environment too."""
    _leave(Path(folder, "in_group"), session=False, forgets=False)
    _leave(Path(folder, "left_group"), session=True, forgets=False)
    _leave(Path(folder, "forgot"), session=True, forgets=True)


def turns_bad(folder: str) -> None:
    """Answer with errors some day."""
    Handler.folder = Path(folder)


def serves(_argument: str) -> None:
    """Do nothing else."""


def _leave(told: Path, *, session: bool, forgets: bool) -> None:
    if os.fork():
        os.wait()
        return
    if session:
        os.setsid()
    child = os.fork()
    if child:
        told.with_suffix(".new").write_text(str(child))
        told.with_suffix(".new").rename(told)
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if forgets:
        os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(1000)"], {})
    time.sleep(1000)


def main() -> None:
    """Misbehave, then serve."""
    port, conduct, *rest = sys.argv[1:]
    conducts = (babbles, exits, floods, ignores_term, leaves_children, turns_bad, serves)
    {each.__name__: each for each in conducts}[conduct](*rest or [""])
    ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main()
