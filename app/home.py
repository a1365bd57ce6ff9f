"""LONGTAKE_HOME: the private folder of this user, where the certificate and the history of renders are kept."""

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
