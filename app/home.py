"""LONGTAKE_HOME: the private folder of this user, with the signing certificate and the render history."""

from __future__ import annotations

import os
from pathlib import Path

HOME = "LONGTAKE_HOME"


def home() -> Path:
    """Return the private folder of this user: $LONGTAKE_HOME, or longtake in the XDG data directory."""
    if named := os.environ.get(HOME):
        return Path(os.path.abspath(named))
    data = Path(os.environ.get("XDG_DATA_HOME", ""))
    return (data if data.is_absolute() else Path(os.path.expanduser("~/.local/share"))) / "longtake"
