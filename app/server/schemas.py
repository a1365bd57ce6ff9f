"""What the server answers and how it explains itself: the shapes in its OpenAPI page, with examples."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, TypeAdapter

from app.server.parsing import FIRST, OFFERED, SENDABLE
from dit.modes import MODES
from dit.request import Request

ABOUT = """Make videos from words, with the routes that the `openai` client's `client.videos` speaks.

Send a prompt to `POST /v1/videos`, ask `GET /v1/videos/{id}` until its `status` is `completed`, and take the file from
`GET /v1/videos/{id}/content`. While a video waits, `ahead` says how many come before it; while it is made, `progress`
is in percent and `eta` in seconds. Files go in a form, or are named by the id of a video or of an upload of yours:
addresses are not fetched and paths are not opened. Where the server asks for a token, send it as
`Authorization: Bearer TOKEN`; nobody else sees what you make. For `gradio_client` the same is at `/tools/`, as tools
of the Model Context Protocol at `/tools/gradio_api/mcp/`."""

SAID = {
    "mode": "One of " + ", ".join(MODES) + "; by default text-to-video, with a picture image-to-video.",
    "prompt": "What is to be seen.",
    "upsample": "auto: let the shipped upsampler write the prompt out.",
    "upsampled_prompt": "What the model reads in place of the prompt.",
    "image": "The first frame: an upload, or the id of a picture.",
    "clip": "The clip to begin with: an upload, or the id of a video or file.",
    "other": "The clip to arrive at.",
    "keyframes": "Pairs of seconds and the id of a picture, for keyframes.",
    "side": "Where an extension goes: after, before or both.",
    "strength": "Of an edit, from 0, which returns the clip, to 1, which forgets it.",
    "window": "A stretch of the clip: from and to, in seconds.",
    "box": "A part of the frame: left, top, right and bottom, in pixels.",
    "mask": "A picture or clip, white where to make anew.",
    "moments": "A storyboard: objects with at, prompt and, if you like, the ids image and clip.",
    "size": "Columns and rows in pixels, as in 64x64 or [64, 64].",
    "seconds": "How long.",
    "fps": "Frames a second.",
    "steps": "How many times the sampler looks at the clip.",
    "guidance": "How strictly to follow the prompt; 1 is plain.",
    "negative_prompt": "What to lead away from.",
    "sampler": "The sampler: euler, heun or dpm.",
    "seed": "Which of all clips that fit the prompt.",
    "watermark": "A corner for a small badge that says AI.",
    "model": "A model on offer, see GET /v1/models.",
}


class Trouble(BaseModel):
    """Why something did not happen."""

    code: str | None = Field(None, examples=["failed"])
    message: str = Field(examples=["size must be one this model was trained for: 64x64; got 64x66"])


class Video(BaseModel):
    """A video: waiting, being made, or there."""

    id: str = Field(examples=["187a3f7d9c1e40b25f0a93cd"])
    object: str = "video"
    model: str = Field(examples=["first"])
    status: str = Field(description="queued, in_progress, completed or failed", examples=["in_progress"])
    progress: int = Field(description="percent", examples=[41])
    created_at: int = Field(description="seconds since 1970", examples=[1795368000])
    completed_at: int | None = None
    expires_at: int | None = None
    prompt: str | None = Field(None, examples=["a large red ball bounces on the grass"])
    seconds: str = Field(description="as asked for", examples=["2.125"])
    size: str = Field(examples=["64x64"])
    remixed_from_video_id: str | None = None
    error: Trouble | None = None
    ahead: int | None = Field(None, description="how many come before it, while it waits", examples=[None])
    eta: float | None = Field(None, description="seconds that its present phase will last", examples=[3.2])
    phase: str = Field("", description="what is being done with it", examples=["dreaming"])
    mode: str = Field("text-to-video", examples=["text-to-video"])
    seed: int = Field(0, examples=[7])
    note: str | None = Field(None, description="what happened to it on the way")
    content: str = Field("", description="where its file is", examples=["/v1/videos/187a3f7d9c1e40b25f0a93cd/content"])


class Videos(BaseModel):
    """A page of videos; the next one begins `after` the last id."""

    object: str = "list"
    data: list[Video]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class Removed(BaseModel):
    """What became of a video or file that was to be removed: one that is being made stops after its step, and is
    removed when asked again.
    """

    id: str
    object: str = "video.deleted"
    deleted: bool


class Upload(BaseModel):
    """A file that was sent, to be named in later requests by its id."""

    id: str = Field(examples=["file-" + "0" * 64])
    object: str = "file"
    bytes: int
    created_at: int
    filename: str = Field(description="its content's name, not the one that it was sent under")
    purpose: str = "user_data"
    status: str = "processed"


class Model(BaseModel):
    id: str = Field(examples=["first"])
    object: str = "model"
    created: int = 0
    owned_by: str = "longtake"


class Models(BaseModel):
    object: str = "list"
    data: list[Model]


class Failure(BaseModel):
    """Why a request was refused, in one sentence."""

    error: Trouble


FAILURES: dict[int | str, dict[str, Any]] = {
    code: {"model": Failure, "description": said}
    for code, said in (
        (400, "It cannot be done as asked; the message says what can."),
        (401, "The token is missing or not known."),
        (404, "There is none of yours with this id."),
        (429, "As many of yours as may are in line; ask again later."),
    )
}
CREATE = ("prompt", "model", "seconds", "size", "seed", "steps", "guidance", "negative_prompt", "mode", "image", "clip")
CREATE = (*CREATE, *(name for name in OFFERED if name not in CREATE))
EXAMPLES = {
    "words": {"summary": "A clip from words", "value": {"prompt": "a large red ball bounces on the grass", "seed": 7}},
    "picture": {
        "summary": "A picture from words",
        "value": {"prompt": "a large blue cube on sand", "mode": "text-to-image"},
    },
    "loop": {"summary": "A loop", "value": {"prompt": "a blue cube spins", "mode": "loop", "seconds": "3"}},
    "storyboard": {
        "summary": "A storyboard",
        "value": {
            "mode": "storyboard",
            "seconds": 4,
            "moments": [
                {"at": 0, "prompt": "a large red ball rests on the grass"},
                {"at": 2, "prompt": "a large red ball bounces on the grass"},
            ],
        },
    },
}


def body(required: tuple[str, ...], examples: dict[str, Any], files: tuple[str, ...] = SENDABLE) -> dict[str, Any]:
    """Describe a body of a Request's fields, in JSON or in a form with files."""
    schema = TypeAdapter(Request).json_schema()
    moments = schema.pop("$defs")["Moment"]
    kinds = schema["properties"]
    kinds["moments"] = {"anyOf": [{"items": moments, "type": "array"}, {"type": "null"}], "default": None}
    for name, also in (("size", "string"), ("seconds", "string")):
        kinds[name] = {"anyOf": [*kinds[name]["anyOf"], {"type": also}], "default": None}
    told = {name: kinds[name] | ({"description": SAID[name]} if name in SAID else {}) for name in CREATE}
    sent = {name: {"type": "string", "format": "binary", "description": SAID.get(name, "")} for name in files}
    if FIRST in sent:
        sent[FIRST]["description"] = SAID["image"]
    whole = {"type": "object", "required": list(required)}
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": whole | {"properties": told}, "examples": examples},
                "multipart/form-data": {"schema": whole | {"properties": told | sent}},
            },
        }
    }
