"""The text of a file that someone wrote: small, UTF-8, or a fault that says what is the matter with it."""

from pathlib import Path

from balancer.settings.faults import WHOLE_FILE, Fault

MISSING = "does not exist"
_FILE_BYTES = 2**20


def read_text(path: Path, kind: str) -> str | Fault:
    """A file's text with plain line ends and no byte order mark, or why it cannot be had. `kind` is what such
    a file holds, as a fault names it. Blocks while it reads."""
    source = source_of(path)
    try:
        if path.is_dir():
            return Fault(source, WHOLE_FILE, "is a directory", f"a {kind} file")
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES + 1)
    except FileNotFoundError:
        return Fault(source, WHOLE_FILE, MISSING, "an existing file")
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        return Fault(source, WHOLE_FILE, f"cannot be read ({reason.lower()})", "a readable file")
    if len(data) > _FILE_BYTES:
        return Fault(source, WHOLE_FILE, "is larger than 1 MiB", "at most 1 MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Fault(source, WHOLE_FILE, f"is not UTF-8 text (byte {error.start})", "text in UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def source_of(path: Path) -> str:
    """A file as faults name it: on one line."""
    return str(path) if str(path).isprintable() else ascii(str(path))
