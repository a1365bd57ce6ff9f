"""Which clips of a batch are there already: files that hold the very request of their row, with all that belongs to
them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from app.batch.manifest import Manifest, stamp
from app.batch.names import hash_file, hash_inputs
from app.batch.read_requests import read_requests
from app.batch.sweeps import BatchItem
from app.provenance.manifest import SIDECAR_TYPES, credentials_path
from app.provenance.signing import is_signing_enabled
from app.registry import model_folder
from dit.modes import MODES
from dit.request import LATENTS_SUFFIX, Request

SECONDS_TOLERANCE = 0.75  # by which a clip may be shorter or longer than asked: models know some durations only
DEFAULTED = ("fps", "steps", "guidance", "frame_guidance", "guidance_interval", "guidance_rescale", "sampler")
GIVEN = (*DEFAULTED, "size", "strength", "side", "window", "box", "negative_prompt", "watermark", "upsampled_prompt")
INPUTS = ("image", "clip", "other", "mask")


@dataclass(frozen=True)
class Finding:
    """What was found at the path of a clip.

    `there` if it is the row's own clip, `error` if none can be written, and `remark` on what will be replaced.
    """

    there: bool = False
    error: str | None = None
    remark: str | None = None


ABSENT, THERE = Finding(), Finding(there=True)


class Examiner:
    """Examine the files of a batch's folder; each file is read once as long as it does not change."""

    def __init__(self, folder: Path, manifest: Manifest, keep_latents: bool = False):
        self.folder, self.manifest, self.keep_latents = folder, manifest, keep_latents
        self.signing = is_signing_enabled()
        self.seen: dict[str, tuple[list[int] | None, BatchItem, Finding]] = {}  # of files that were read
        self.hash_of = cache(hash_file)
        self.settings = cache(_settings)

    def examine(self, items: Sequence[BatchItem]) -> list[Finding]:
        """Return what is at the path of each item, which must have a request."""
        found = [self._at_a_glance(item) for item in items]
        unread = [item for item, finding in zip(items, found, strict=True) if finding is None]
        texts = read_requests(self._path(item) for item in unread)
        requests = {item.name: text for item, text in zip(unread, texts, strict=True)}
        for number, item in enumerate(items):
            if found[number] is None:
                before = stamp(self._path(item))
                found[number] = finding = self._compare(item, requests.get(item.name))
                self.seen[item.name] = before, item, finding
        return [finding or ABSENT for finding in found]

    def is_there(self, item: BatchItem) -> bool:
        """Say whether an item's clip is there now."""
        (finding,) = self.examine([item])
        return finding.there

    def _path(self, item: BatchItem) -> Path:
        return self.folder / item.name

    def _at_a_glance(self, item: BatchItem) -> Finding | None:
        """Return what is at an item's path, None where the file must be read to tell."""
        path = self._path(item)
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return ABSENT
        except OSError as error:
            return Finding(error=f"a clip must have a path that can be written; {path} cannot: {error.strerror}")
        if not stat.S_ISREG(status.st_mode):
            kind = "folder" if stat.S_ISDIR(status.st_mode) else "device or pipe"
            return Finding(error=f"a clip must be a file; {path} is a {kind}, so rename it, or set another output")
        if not status.st_size:
            return Finding(remark="it was empty")
        if path.suffix.lower() in SIDECAR_TYPES and self.signing and not credentials_path(path).is_file():
            return Finding(remark="its credentials were not beside it")
        if self.keep_latents and not path.with_name(path.name + LATENTS_SUFFIX).is_file():
            return Finding(remark="its latents were not beside it")
        if self.manifest.is_known(item.name, item.digest, path):
            return THERE
        before, known, finding = self.seen.get(item.name, (None, None, None))
        return finding if known == item and before == stamp(path) else None

    def _compare(self, item: BatchItem, text: str | None) -> Finding:
        assert item.request
        try:
            if text is None:
                return Finding(remark="it held no request")
            if self._is_made_for(Request.from_json(text), item.request):
                return THERE
        except (ValueError, OSError):  # a request of a later version, or an input that is gone
            return Finding(remark="its request could not be read")
        return Finding(remark="it held another request")

    def _is_made_for(self, made: Request, wanted: Request) -> bool:
        """Say whether a file's own request, all its defaults filled in, is what a row asks for."""
        if (made.mode, made.prompt.strip(), made.seed, made.upsample) != (
            *(wanted.mode, wanted.prompt.strip(), wanted.seed, wanted.upsample),
        ):
            return False
        if wanted.model_hash and made.model_hash != wanted.model_hash:
            return False
        if not wanted.upsample and made.upsampled_prompt != wanted.upsampled_prompt:
            return False
        defaults = self.settings(wanted.model)
        for name in GIVEN:
            value, found = getattr(wanted, name), getattr(made, name)
            if value is None and name in DEFAULTED and name != "fps":
                value = getattr(defaults, name, None)
            if value is not None and found is not None and found != value:
                return False
        if (made.negative_prompt or "") != (wanted.negative_prompt or "") or made.watermark != wanted.watermark:
            return False
        still = made.mode in MODES and MODES[made.mode].still
        if wanted.seconds and made.seconds and not still and abs(made.seconds - wanted.seconds) > SECONDS_TOLERANCE:
            return False
        return self._inputs(made, dict(made.hashes or ())) == self._inputs(
            wanted, hash_inputs(wanted, self.hash_of)
        ) and _moments(made) == _moments(wanted)

    def _inputs(self, request: Request, hashes: dict[str, str]) -> list:
        paths = [getattr(request, name) for name in INPUTS]
        keyframes = [(at, hashes.get(path, "")) for at, path in request.keyframes or ()]
        moments = [hashes.get(path, "") for one in request.moments or () for path in (one.image, one.clip) if path]
        return [[path and hashes.get(path, "") for path in paths], keyframes, moments]


def _moments(request: Request) -> list[tuple[float, str]]:
    return [(one.at, one.prompt) for one in request.moments or ()]


def _settings(model: str | None):
    """Return the settings of a model; None where it cannot be read, which its job will report."""
    try:
        from dit.adapters.load import settings_of

        return settings_of(model_folder(model))
    except (ValueError, OSError):
        return None
