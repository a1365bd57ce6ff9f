"""What this machine has rendered and how fast, in one small SQLite file per user, for estimates of the next clips."""

from __future__ import annotations

import platform
import sqlite3
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.home import home, make_private_file, make_private_folder

if TYPE_CHECKING:
    from dit.estimate import Cost

MAX_CLIPS = 200  # the latest clips that are kept for each model and device
DEFAULT_FLOPS_PER_SECOND = {"cpu": 2e10, "cuda": 3e13}  # of a CPU thread or a GPU, before any clip was made
DEFAULT_PROGRAM_BYTES = 475 * 2**20  # memory of the program without a model, likewise
DEFAULT_BYTES_PER_PIXEL = 0.12  # of a file, for each pixel of each frame, likewise
PEAK, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

TABLE = """CREATE TABLE IF NOT EXISTS clips (
    made REAL NOT NULL, model TEXT NOT NULL, device TEXT NOT NULL, flops REAL NOT NULL, seconds REAL NOT NULL,
    working INTEGER NOT NULL, peak INTEGER, pixels INTEGER NOT NULL, suffix TEXT NOT NULL, bytes INTEGER NOT NULL
)"""


@dataclass(frozen=True)
class Speed:
    """How fast clips were made: FLOPs per second, median and quartiles; default guesses where `clips` is 0.

    `slow` and `fast` are the first and third quartile of FLOPs per second. `program_bytes` is the memory of the program
    without a model, `bytes_per_pixel` the file size for each pixel of each frame.
    """

    clips: int
    flops_per_second: float
    slow: float
    fast: float
    program_bytes: int
    bytes_per_pixel: float


def device_name(device: str, threads: int) -> str:
    """Name the hardware that clips are made on, as far as it decides the speed."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return f"{platform.node()} x {threads}"


class History:
    """The clips that were made on this machine. A file that cannot be read or written counts as an empty history."""

    def __init__(self, path: Path | None = None):
        self.path = path or home() / "history.sqlite"

    def record(
        self, cost: Cost, device: str, seconds: float, peak_bytes: int | None, output: Path, pack_size: int
    ) -> None:
        """Store the seconds and the peak memory of a clip that was made as one of a pack of `pack_size`."""
        with suppress(OSError, sqlite3.Error):
            make_private_folder(self.path.parent)
            make_private_file(self.path)
            row = (time.time(), cost.request.model_hash, device, cost.flops, seconds, cost.working_bytes(pack_size))
            with closing(sqlite3.connect(self.path, timeout=5)) as connection, connection:
                connection.execute(TABLE)
                connection.execute(
                    "INSERT INTO clips VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (*row, peak_bytes, cost.pixels, output.suffix, output.stat().st_size),
                )
                connection.execute(
                    "DELETE FROM clips WHERE model = ? AND device = ? AND rowid NOT IN (SELECT rowid FROM clips "
                    "WHERE model = ? AND device = ? ORDER BY rowid DESC LIMIT ?)",
                    (*row[1:3], *row[1:3], MAX_CLIPS),
                )

    def speed(self, model_hash: str | None, device: str, threads: int, suffix: str) -> Speed:
        """Return how fast a model was on a device; medians, so that one slow clip does not change the estimate."""
        from statistics import median, quantiles  # slow to import

        kind = device.partition(":")[0]
        guess = DEFAULT_FLOPS_PER_SECOND.get(kind, DEFAULT_FLOPS_PER_SECOND["cpu"])
        guess *= threads if kind == "cpu" else 1
        found: list[tuple] = []
        with suppress(OSError, sqlite3.Error), closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as rows:
            found = rows.execute(
                "SELECT flops / seconds, peak - working, suffix, 1.0 * bytes / pixels FROM clips "
                "WHERE model = ? AND device = ? AND seconds > 0",
                (model_hash, device_name(device, threads)),
            ).fetchall()
        sizes = [size for *_, name, size in found if name == suffix]
        bytes_per_pixel = median(sizes) if sizes else DEFAULT_BYTES_PER_PIXEL
        if not found:
            return Speed(0, guess, guess / 3, guess * 3, DEFAULT_PROGRAM_BYTES, bytes_per_pixel)
        rates = [rate for rate, *_ in found]
        slow, _, fast = quantiles(rates, n=4) if len(rates) > 1 else (rates[0],) * 3
        programs = [program for _, program, *_ in found if program is not None]
        program_bytes = round(median(programs)) if programs else DEFAULT_PROGRAM_BYTES
        return Speed(len(found), median(rates), slow, fast, program_bytes, bytes_per_pixel)


class Stopwatch:
    """A stopwatch that also measures the peak memory of this process since it was started."""

    def __init__(self, device: str):
        self.device, self.started = device, time.monotonic()
        if device.startswith("cuda"):
            import torch

            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):
                RESET.write_text("5")  # resets the peak (proc(5), clear_refs)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def peak_bytes(self) -> int | None:
        """The most bytes in use at any moment; None where the system does not tell."""
        if self.device.startswith("cuda"):
            import torch

            return torch.cuda.max_memory_reserved(self.device)
        with suppress(OSError):
            for line in PEAK.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return 1024 * int(line.split()[1])
        return None
