"""Read untrusted files in a child process with limits on time and memory.

Decoders are C code and may crash, hang or exhaust memory on a crafted file. The child is forked from a server process
that has imported the readers, so that all but the first file cost only milliseconds more.
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

import numpy as np
import torch
from torch import Tensor

from vae.video import read
from vae.video.pixels import MediaError

MAX_MEMORY_BYTES = 20 * 2**30  # enough for the largest clip that `read_video` accepts, in uint8 and in float32
MAX_SECONDS = 300.0
STATM = Path("/proc/self/statm")  # its first number is the address space in pages


def read_video(
    path: str | Path,
    fps: float | Fraction | None = None,
    seconds: float | None = None,
    *,
    size: tuple[int, int] | None = None,
) -> read.DecodedVideo:
    """Call `read.read_video` in a child process. Also raises MediaError if it exceeds a limit."""
    return run_sandboxed(read.read_video, path, fps, seconds, size=size)


def read_image(path: str | Path) -> Tensor:
    """Call `read.read_image` in a child process. Also raises MediaError if it exceeds a limit."""
    return run_sandboxed(read.read_image, path)


def read_sampled_frames(path: str | Path, frames: int, side: int) -> Tensor:
    """Call `read.read_sampled_frames` in a child process. Also raises MediaError if it exceeds a limit."""
    return run_sandboxed(read.read_sampled_frames, path, frames, side)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Call `read.read_metadata` in a child process. Also raises MediaError if it exceeds a limit."""
    return run_sandboxed(read.read_metadata, path)


def read_duration(path: str | Path) -> float:
    """Call `read.read_duration` in a child process. Also raises MediaError if it exceeds a limit."""
    return run_sandboxed(read.read_duration, path)


def read_info(path: str | Path, is_image: bool | None = None) -> read.MediaInfo:
    """Call `read.read_info` in a child process. Also raises MediaError if it exceeds a limit."""
    return run_sandboxed(read.read_info, path, is_image)


def read_sound(path: str | Path, seconds: float | None = None) -> Tensor:
    """Call `read.read_sound` in a child process. Also raises MediaError if it exceeds a limit."""
    return run_sandboxed(read.read_sound, path, seconds)


def run_sandboxed(
    reader: Callable,
    path: str | Path,
    *args,
    memory: int = MAX_MEMORY_BYTES,
    seconds: float = MAX_SECONDS,
    **settings,
) -> Any:
    """Call `reader(path, *args, **settings)` in a child process; `reader` must be a function of a module.

    The child may run `seconds` and use `memory` bytes more than it starts with. Raises what the reader raises, and
    MediaError if the child crashes or exceeds a limit.
    """
    context: Any = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    context.set_forkserver_preload([read.__name__])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_run_child, args=(sender, memory, reader, (path, *args), settings), daemon=True)
    with hide_main_module():
        child.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            raise MediaError(f"{path} must be read within {seconds:g} seconds; it was not; give a smaller file")
        result, error = receiver.recv()
    except EOFError:
        raise MediaError(f"{path} cannot be read: it crashed the reader; export it again") from None
    finally:
        child.kill()
        child.join()
        receiver.close()
    if error is not None:
        raise error
    return _map_pixels(result, np.ndarray, torch.from_numpy)


@contextmanager
def hide_main_module() -> Iterator[None]:
    """Hide the running script from a new child process, which would import it and so run an unguarded script again."""
    with _main_module_lock:
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


_main_module_lock = Lock()


def limit_memory(additional_bytes: int) -> None:
    """Limit this process to `additional_bytes` more than it uses now. Does nothing where there is no /proc (Linux)."""
    if STATM.exists():
        import resource

        used = int(STATM.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + additional_bytes, used + additional_bytes))


def _run_child(sender: Connection, memory: int, reader: Callable, args: tuple, settings: dict) -> None:
    """Call the reader within limits; send (result, None) or (None, exception)."""
    limit_memory(memory)
    try:
        result, error = _map_pixels(reader(*args, **settings), Tensor, Tensor.numpy), None
    except (MemoryError, RuntimeError) as raised:  # torch raises RuntimeError when memory runs out
        rule = f"{args[0]} cannot be read in {memory / 2**30:g} GiB"
        result, error = None, MediaError(f"{rule}: {raised}; shrink it first")
    except Exception as raised:
        result, error = None, raised
    sender.send((result, error))


def _map_pixels(result, kind: type, convert: Callable):
    """Convert the pixels in a result, if there are any: arrays are sent as bytes, tensors as shared memory."""
    if isinstance(result, read.DecodedVideo):
        return result._replace(video=convert(result.video))
    return convert(result) if isinstance(result, kind) else result
