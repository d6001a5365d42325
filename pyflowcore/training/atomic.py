"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def check_writable(path: str | os.PathLike[str]) -> Path:
    """The path, once it is clear that a file can be put there; worth asking before an hour of work rather than after.

    Raises:
        ValueError: if it is a folder, or its folder does not exist or cannot be written to.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; a file name is needed")
    if not path.parent.is_dir():
        raise ValueError(f"the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"the folder {path.parent} is not writable")
    return path


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that a reader, or a crash, never meets half of it.

    The bytes go to a temporary file in the same folder (os.replace is atomic only within one file system), reach the
    disk, and then take the name. On any failure the old file stays and the temporary one goes.
    """
    path = check_writable(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _default_mode(path))
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _default_mode(path: Path) -> int:
    """What the file has already, else what the umask gives a new one; mkstemp alone would leave it private."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
