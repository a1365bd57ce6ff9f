"""Start a server for tests, as people start it, and wait for it."""

import io
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

from PIL import Image

TOKEN, OTHER_TOKEN = "a-token-of-one-person", "a-token-of-another"


@contextmanager
def running_server(command, folder, model):
    """Run a server command with one worker; yield its URL and its queue's folder."""
    arguments = (command, str(folder), "--port", "0", "--workers", "1", "--model", str(model))
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", *arguments],
        env=os.environ | {"LONGTAKE_TOKEN": f"{TOKEN},{OTHER_TOKEN}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process.stdout.readline().strip(), folder
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0


def png_bytes(colour="red", size=(64, 64)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def wait_for(condition, seconds=120.0):
    """Call `condition` until it returns something true, and return that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.05)
    raise TimeoutError
