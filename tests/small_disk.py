"""A small disk for tests that fill it."""

import os
import subprocess
from contextlib import contextmanager

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount the small file system that this fills")


@contextmanager
def small_disk(folder, size="1m", options=""):
    """Mount an empty file system of this size; yields its folder and a function that fills it to the last byte."""
    folder.mkdir()
    options = f"size={size}{options}"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")

    def fill():
        with open(folder / "filler", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        return folder / "filler"

    try:
        yield folder, fill
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
