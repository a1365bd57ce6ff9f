"""Write files whole or not at all, and force them to the disk."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_write(target: str | Path, durable: bool = True) -> Iterator[Path]:
    """Yield an empty temporary file in the folder of `target`; rename it to `target` when the block ends.

    Readers see the old file or the new one, never a part. If the block raises, or the process is killed, `target` stays
    as it was; the temporary file, hidden and ending in `.part`, is removed except after a kill. With `durable`, the
    content is on the disk before the rename and the name after it (fsync of the file, then of its folder), so the same
    holds after a power failure; without, only after the death of the process, for files that can be made again.

    A new file gets the permissions that `open` would give it, a replaced one keeps its own. A symbolic link is
    replaced, not followed: resolve it first where its target is meant. Raises OSError.
    """
    target = Path(target)
    temporary = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        with suppress(FileNotFoundError):
            mode = os.lstat(target).st_mode
            if stat.S_ISREG(mode):
                os.chmod(temporary, stat.S_IMODE(mode))
        if durable:
            sync(temporary)  # network disks report only now that they are full
        os.replace(temporary, target)
        if durable:
            sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(*paths: Path) -> None:
    """Force files, or the names in folders, to the disk. Raises OSError."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL or not path.is_dir():  # some file systems cannot sync a folder
                raise
        finally:
            os.close(descriptor)
