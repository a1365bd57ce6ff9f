"""What a request's given files are like: the size that suits them, and remarks on what is not kept of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from dit.modes import Mode
from dit.request import Request
from dit.settings import Settings
from vae.video.pixels import crop_size
from vae.video.sandbox import read_info

SILENT_SUFFIXES = (".gif", ".png")  # of files without sound
FPS_TOLERANCE = 0.01  # by which frame rates may differ without a remark


def given_files(request: Request, mode: Mode) -> Iterator[tuple[str, bool]]:
    """Yield the clips and images that a request's mode shows, each with whether it is a clip; masks are not shown."""
    for name, is_clip in (("clip", True), ("image", False), ("other", True)):
        if name in mode.reads and getattr(request, name):
            yield getattr(request, name), is_clip
    if "keyframes" in mode.reads:
        yield from ((path, False) for _, path in request.keyframes or ())
    if "moments" in mode.reads:
        for moment in request.moments or ():
            yield from ((path, path == moment.clip) for path in (moment.clip, moment.image) if path)


def size_of_inputs(
    request: Request, mode: Mode, settings: Settings, stride: int = 4, folder: Path = Path()
) -> tuple[int, int]:
    """Return the trained size (columns, rows) nearest in shape, then in area, to the first given clip or image.

    Without any, and where a box places the clip in a frame, it is the default size. Only sizes are considered at which
    the requested seconds were trained, to within the temporal stride in frames. Files are named relative to `folder`.
    Raises MediaError for a file that cannot be read.
    """
    path, is_clip = next(given_files(request, mode), (None, False))
    if path is None or "box" in mode.needs:
        return settings.size
    lengths = dict[tuple[int, int], list[float]]()
    for columns, rows, frames in settings.formats:
        if mode.still == (frames == 1):
            lengths.setdefault((columns, rows), []).append(frames / settings.fps)
    if request.seconds is not None and not mode.any_length and not mode.still:
        wanted, step = request.seconds, stride / settings.fps
        lengths = {size: all for size, all in lengths.items() if min(abs(one - wanted) for one in all) < step}
    if not lengths:
        return settings.size
    info = read_info(folder / path, not is_clip)

    def distance(size: tuple[int, int]) -> tuple[float, float]:
        columns, rows = size
        shape = abs(math.log(columns / rows * info.rows / info.columns))
        return round(shape, 2), abs(math.log(columns * rows / (info.columns * info.rows)))

    return min(lengths, key=distance)


def input_notes(request: Request, mode: Mode, suffix: str = ".mp4") -> list[str]:
    """Say what of a resolved request's files is cropped, resampled or dropped, a sentence for each file.

    `suffix` is that of the file to write. Raises MediaError for a file that cannot be read.
    """
    notes = []
    for path, is_clip in dict(given_files(request, mode)).items():
        info, changes = read_info(path, not is_clip), []
        columns, rows = request.size or (info.columns, info.rows)
        if request.box and "box" in mode.needs:
            left, top, right, bottom = request.box
            columns, rows = right - left, bottom - top
        if (columns, rows) != (info.columns, info.rows):
            kept_rows, kept_columns = crop_size(info.rows, info.columns, rows, columns)
            if (kept_rows, kept_columns) != (info.rows, info.columns):
                changes.append(f"it is cropped at its center to {kept_columns}x{kept_rows}")
            if (kept_columns, kept_rows) != (columns, rows):
                changes.append(f"it is scaled to {columns}x{rows}")
        if is_clip and info.fps and request.fps and abs(info.fps / request.fps - 1) > FPS_TOLERANCE:
            changes.append(f"its {info.fps:.4g} frames a second are read at {request.fps:g}")
        if info.has_sound and suffix.lower() in SILENT_SUFFIXES:
            changes.append(f"its sound is left out, because a {suffix} file has none")
        if found := [*changes, *info.remarks]:
            notes.append(f"{Path(path).name} ({info.columns}x{info.rows}): {'; '.join(found)}")
    return notes
