"""Sign files as they are written, unless signing is disabled. Heavy libraries are imported only where they are used."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from app.provenance.certificate import ProvenanceError
from app.provenance.credentials import check_signing, sign
from app.provenance.manifest import SIDECAR_SUFFIX, SIDECAR_TYPES
from dit.request import Request
from vae.files import sync

SIGN_VARIABLE, ON, OFF = "LONGTAKE_SIGN", "on", "off"  # an environment variable and its values
UNSIGNED_HELP = "do not sign files with Content Credentials (same as LONGTAKE_SIGN=off)"


def is_signing_enabled() -> bool:
    """Return whether files are signed as they are written: yes, unless LONGTAKE_SIGN is off.

    Raises ProvenanceError for any other value than on or off.
    """
    value = os.environ.get(SIGN_VARIABLE) or ON
    if value not in (ON, OFF):
        raise ProvenanceError(f"{SIGN_VARIABLE} must be {ON} or {OFF}; got {value!r}; correct it")
    return value == ON


@contextmanager
def signing_disabled() -> Iterator[None]:
    """Disable signing inside the block, in this process and in the processes it starts."""
    before, os.environ[SIGN_VARIABLE] = os.environ.get(SIGN_VARIABLE), OFF
    try:
        yield
    finally:
        os.environ.pop(SIGN_VARIABLE)
        if before is not None:
            os.environ[SIGN_VARIABLE] = before


def prepare_signing() -> None:
    """Check, before any expensive work, that files can be signed; print a note on stderr where signing is disabled.

    Raises ProvenanceError as `check_signing` does.
    """
    if not is_signing_enabled():
        print("longtake: signing is disabled, so files are unsigned; longtake sign signs them later", file=sys.stderr)
        return
    try:
        check_signing()
    except ProvenanceError as error:
        raise ProvenanceError(f"{error}, or give --unsigned") from error


@contextmanager
def signed_output(output: Path, request: Request, clips: Sequence[Path] | None = None) -> Iterator[Path]:
    """Yield a temporary path to write `output` to; when the block ends, sign the file and move it into place.

    Sidecar files that are written next to the temporary path move with it. Until then, and after any error, `output` is
    unchanged. The file is not signed where signing is disabled. Raises DiskError, and what `sign` raises.
    """
    from vae.video.pixels import DiskError

    target, signing = Path(os.path.realpath(output)), is_signing_enabled()
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
            if target.suffix.lower() in SIDECAR_TYPES and not signing:  # the sidecar of an earlier file
                target.with_name(target.name + SIDECAR_SUFFIX).unlink(missing_ok=True)
            for path in sorted(folder.iterdir(), key=lambda path: path.name == target.name):  # sidecars first
                os.replace(path, target.parent / path.name)
            sync(target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    from vae.video.pixels import DiskError

    try:
        yield
    except OSError as error:
        raise DiskError(f"{target} could not be written: {error.strerror or error}; make room") from error
