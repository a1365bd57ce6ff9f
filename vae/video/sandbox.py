"""Read the files of strangers in a child process, which may crash, hang or swell without harm to us.

Decoders are written in C and meet whatever the file holds. The child is forked from a small server that has imported
the readers once, so that after the first file a child costs milliseconds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from vae.video import read as media
from vae.video.pixels import MediaError

MAX_MEMORY_BYTES = 20 * 2**30  # bytes: room for the largest clip that `read_video` takes, as bytes and as numbers
MAX_SECONDS = 300.0
STATM = Path("/proc/self/statm")  # in pages


def read_video(
    path: str | Path,
    fps: float | Fraction | None = None,
    seconds: float | None = None,
    *,
    size: tuple[int, int] | None = None,
) -> media.DecodedVideo:
    """Do `media.read_video` in a child; raises MediaError also where the file takes too much time or memory."""
    return run_sandboxed(media.read_video, path, fps, seconds, size=size)


def read_image(path: str | Path) -> Tensor:
    """Do `media.read_image` in a child; raises MediaError also where the file takes too much time or memory."""
    return run_sandboxed(media.read_image, path)


def read_sampled_frames(path: str | Path, frames: int, side: int) -> Tensor:
    """Do `media.read_sampled_frames` in a child; raises MediaError also where the file takes too much time or memory."""
    return run_sandboxed(media.read_sampled_frames, path, frames, side)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Do `media.read_metadata` in a child; raises MediaError also where the file takes too much time or memory."""
    return run_sandboxed(media.read_metadata, path)


def read_duration(path: str | Path) -> float:
    """Do `media.read_duration` in a child; raises MediaError also where the file takes too much time or memory."""
    return run_sandboxed(media.read_duration, path)["seconds"]


def run_sandboxed(
    read: Callable, path: str | Path, *args, memory: int = MAX_MEMORY_BYTES, seconds: float = MAX_SECONDS, **settings
) -> Any:
    """Return what a reader, a function of some module, returns for a file, read in a child of at most `memory` bytes
    more than it begins with and `seconds`.

    Raises what the reader raises, and MediaError where the child crashes or goes beyond its limits.
    """
    context: Any = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    context.set_forkserver_preload([media.__name__])
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(there, memory, read, (path, *args), settings), daemon=True)
    with hide_main_module():
        child.start()
    there.close()
    try:
        if not here.poll(seconds):
            raise MediaError(f"{path} must be read within {seconds:g} seconds; it was not; give a smaller file")
        found, error = here.recv()
    except EOFError:
        raise MediaError(f"{path} cannot be read: it crashed the reader; export it again") from None
    finally:
        child.kill()
        child.join()
        here.close()
    if error is not None:
        raise error
    return _with(found, torch.from_numpy)


@contextmanager
def hide_main_module() -> Iterator[None]:
    """Hide the script that runs, which a child would import, and so run again where it does not guard against that."""
    with _hiding:
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


_hiding = Lock()


def limit_memory(most: int) -> None:
    """Let this process have at most so many bytes more than it has now; does nothing where that cannot be done."""
    if STATM.exists():  # only Linux limits memory so
        import resource

        begun = int(STATM.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (begun + most, begun + most))


def _answer(answer: Connection, memory: int, read: Callable, args: tuple, settings: dict) -> None:
    """Read within limits and send (what was found, None) or (None, what was raised)."""
    limit_memory(memory)
    try:
        found, error = _with(read(*args, **settings), Tensor.numpy), None
    except (MemoryError, RuntimeError) as raised:  # torch says the latter
        rule = f"{args[0]} cannot be read in {memory / 2**30:g} GiB"
        found, error = None, MediaError(f"{rule}: {raised}; shrink it first")
    except Exception as raised:
        found, error = None, raised
    answer.send((found, error))


def _with(found, change: Callable):
    """Change the pixels in what a reader returned: arrays travel between processes as bytes, tensors would not."""
    if isinstance(found, media.DecodedVideo):
        return found._replace(video=change(found.video))
    return found if isinstance(found, dict) else change(found)
