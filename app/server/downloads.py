"""The name under which a browser stores a clip: the beginning of its prompt, and its seed."""

from __future__ import annotations

import re

from dit.request import Request

MAX_NAME_CHARS = 60  # of the prompt


def download_name(request: Request, suffix: str) -> str:
    """Return the file name of a clip, such as "a-red-ball-bounces-7.mp4"; letters of any script are kept."""
    prompts = (request.prompt, *(moment.prompt for moment in request.moments or ()))
    text = next((prompt for prompt in prompts if re.search(r"[^\W_]", prompt)), request.mode)
    name = "-".join(re.findall(r"[^\W_]+", text.lower()))[:MAX_NAME_CHARS].strip("-")
    return f"{name}-{request.seed}{suffix}"
