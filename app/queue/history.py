"""What this machine has made and how fast, in one small SQLite file of the user's, so that it can say how long the next
clip will take.
"""

from __future__ import annotations

import platform
import sqlite3
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.home import home

if TYPE_CHECKING:
    from dit.estimate import Cost

KEPT = 200  # clips that are remembered of each model and device, the latest ones
GUESSED_RATE = {"cpu": 2e10, "cuda": 3e13}  # FLOPs a second of a CPU thread or a GPU, before anything was made
PROGRAM = 475 * 2**20  # bytes of the program itself, likewise
GUESSED_BYTES = 0.12  # of a file for each pixel of each frame, likewise
PEAK, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

TABLE = """CREATE TABLE IF NOT EXISTS clips (
    made REAL NOT NULL, model TEXT NOT NULL, device TEXT NOT NULL, flops REAL NOT NULL, seconds REAL NOT NULL,
    working INTEGER NOT NULL, peak INTEGER, pixels INTEGER NOT NULL, suffix TEXT NOT NULL, bytes INTEGER NOT NULL
)"""


@dataclass(frozen=True)
class Pace:
    """How fast clips were made: FLOPs a second of the middle one, and where the slowest and the fastest quarter begin;
    the bytes of the program itself; those of a file for each pixel of each frame. With no clips, all are guesses.
    """

    clips: int
    rate: float
    slow: float
    fast: float
    program: int
    file_bytes: float


def device_name(device: str, threads: int) -> str:
    """Name what clips are made on, as far as it matters to how fast."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return f"{platform.node()} x {threads}"


class History:
    """The clips that were made on this machine. What cannot be read or written is as if nothing had been made."""

    def __init__(self, path: Path | None = None):
        self.path = path or home() / "history.sqlite"

    def note(self, cost: Cost, device: str, seconds: float, peak: int | None, output: Path, most: int) -> None:
        """Remember the seconds that a clip took, one of `most` as a pack, and the memory at the fullest."""
        with suppress(OSError, sqlite3.Error):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            row = (time.time(), cost.request.model_hash, device, cost.flops, seconds, cost.working(most), peak)
            with closing(sqlite3.connect(self.path, timeout=5)) as rows, rows:
                rows.execute(TABLE)
                rows.execute(
                    "INSERT INTO clips VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (*row, cost.pixels, output.suffix, output.stat().st_size),
                )
                rows.execute(
                    "DELETE FROM clips WHERE model = ? AND device = ? AND rowid NOT IN (SELECT rowid FROM clips "
                    "WHERE model = ? AND device = ? ORDER BY rowid DESC LIMIT ?)",
                    (*row[1:3], *row[1:3], KEPT),
                )

    def pace(self, model: str | None, device: str, threads: int, suffix: str) -> Pace:
        """Return how fast a model, by its hash, was on a device: medians, which one slow clip does not move."""
        from statistics import median, quantiles  # slow to import

        kind = device.partition(":")[0]
        guess = GUESSED_RATE.get(kind, GUESSED_RATE["cpu"]) * (threads if kind == "cpu" else 1)
        found: list[tuple] = []
        with suppress(OSError, sqlite3.Error), closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as rows:
            found = rows.execute(
                "SELECT flops / seconds, peak - working, suffix, 1.0 * bytes / pixels FROM clips "
                "WHERE model = ? AND device = ? AND seconds > 0",
                (model, device_name(device, threads)),
            ).fetchall()
        sizes = [size for *_, name, size in found if name == suffix]
        file_bytes = median(sizes) if sizes else GUESSED_BYTES
        if not found:
            return Pace(0, guess, guess / 3, guess * 3, PROGRAM, file_bytes)
        rates = [rate for rate, *_ in found]
        slow, _, fast = quantiles(rates, n=4) if len(rates) > 1 else (rates[0],) * 3
        programs = [program for _, program, *_ in found if program is not None]
        return Pace(len(found), median(rates), slow, fast, round(median(programs)) if programs else PROGRAM, file_bytes)


class Stopwatch:
    """A stopwatch, and a gauge of the most memory in use since it was begun."""

    def __init__(self, device: str):
        self.device, self.begun = device, time.monotonic()
        if device.startswith("cuda"):
            import torch

            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):
                RESET.write_text("5")  # the peak begins anew (proc(5), clear_refs)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun

    @property
    def peak(self) -> int | None:
        """The bytes in use at the fullest moment; None where the machine does not tell."""
        if self.device.startswith("cuda"):
            import torch

            return torch.cuda.max_memory_reserved(self.device)
        with suppress(OSError):
            for line in PEAK.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return 1024 * int(line.split()[1])
        return None
