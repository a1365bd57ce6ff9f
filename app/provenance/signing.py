"""Files are signed as they are written, unless nobody wants that. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from app.provenance.certificate import ProvenanceError
from app.provenance.credentials import BESIDE, CREDENTIALS, check_signing, sign
from dit.request import Request

SIGN, ON, OFF = "LONGTAKE_SIGN", "on", "off"  # a variable, and what it may say
UNSIGNED_HELP = "write no Content Credentials, as LONGTAKE_SIGN=off does"


def signs() -> bool:
    """Say whether files are signed as they are written, which they are unless LONGTAKE_SIGN is off.

    Raises ProvenanceError where it says anything but on or off.
    """
    said = os.environ.get(SIGN) or ON
    if said not in (ON, OFF):
        raise ProvenanceError(f"{SIGN} must be {ON} or {OFF}; got {said!r}; correct it")
    return said == ON


@contextmanager
def unsigned() -> Iterator[None]:
    """Have no file signed meanwhile, in this process and those that it starts."""
    before, os.environ[SIGN] = os.environ.get(SIGN), OFF
    try:
        yield
    finally:
        os.environ.pop(SIGN)
        if before is not None:
            os.environ[SIGN] = before


def ready_to_sign() -> None:
    """Make sure, before any expensive work, that files can be signed as they are written; say so on stderr where they
    will not be. Raises ProvenanceError as `check_signing` does.
    """
    if not signs():
        print("longtake: nothing here is signed, as was asked; longtake sign does so later", file=sys.stderr)
        return
    try:
        check_signing()
    except ProvenanceError as error:
        raise ProvenanceError(f"{error}, or give --unsigned") from error


@contextmanager
def signed(output: Path, request: Request, clips: Sequence[Path] | None = None) -> Iterator[Path]:
    """Yield where to write a file; afterwards it is signed, unless nothing is, as `sign` does, and moved to its place
    with what lies beside it. Until then, and after any error, its place is as it was.
    """
    from vae.video.pixels import DiskError

    target, signing = Path(os.path.realpath(output)), signs()
    with _disk_errors(target):
        folder = Path(tempfile.mkdtemp(".part", ".", target.parent))
    try:
        try:
            yield folder / target.name
            if signing:
                sign(folder / target.name, request, clips)
        except DiskError as error:
            raise DiskError(str(error).replace(str(folder), str(target.parent))) from error
        with _disk_errors(target):
            if target.suffix.lower() in BESIDE and not signing:  # what an earlier file left
                target.with_name(target.name + CREDENTIALS).unlink(missing_ok=True)
            for path in sorted(folder.iterdir(), key=lambda path: path.name == target.name):  # itself last
                os.replace(path, target.parent / path.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    from vae.video.pixels import DiskError

    try:
        yield
    except OSError as error:
        raise DiskError(f"{target} could not be written: {error.strerror or error}; make room") from error
