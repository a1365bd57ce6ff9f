"""The response models of the HTTP API, and its OpenAPI descriptions and examples."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, TypeAdapter

from app.server.parsing import CLIENT_FIELDS, FILE_FIELDS, IMAGE_ALIAS
from captioning.camera import CAMERA_AXES, CAMERA_MOVES
from dit.modes import MODES
from dit.request import Request

DESCRIPTION = """Generate videos from text, with the routes of the `openai` client's `client.videos`.

Send a prompt to `POST /v1/videos`, poll `GET /v1/videos/{id}` until its `status` is `completed`, and download the file
from `GET /v1/videos/{id}/content`. While a video waits, `ahead` is the number of videos before it; while it is
generated, `progress` is in percent and `eta` in seconds. Send files in a form, or name them by the id of your video or
upload: URLs are not fetched and paths are not opened. Where the server requires a token, send it as
`Authorization: Bearer TOKEN`; nobody else sees your videos. For `gradio_client` the same service is at `/tools/`, and
as tools of the Model Context Protocol at `/tools/gradio_api/mcp/`."""

FIELD_DESCRIPTIONS = {
    "mode": "One of " + ", ".join(MODES) + "; by default text-to-video, or image-to-video with an image.",
    "prompt": "What the video shows.",
    "upsample": "auto: let the shipped upsampler rewrite the prompt in more detail.",
    "upsampled_prompt": "The prompt that the model reads in place of `prompt`.",
    "image": "The first frame: an upload, or the id of an image.",
    "clip": "The input clip: an upload, or the id of a video or file.",
    "other": "The clip to connect to.",
    "keyframes": "Pairs of a time in seconds and the id of an image.",
    "side": "Where to extend the clip: after, before or both.",
    "strength": "Strength of an edit: 0 keeps the clip, 1 ignores it.",
    "window": "A part of the clip to generate again: from and to, in seconds.",
    "box": "A region of the frame to generate again: left, top, right and bottom, in pixels.",
    "mask": "An image or clip, white where to generate again.",
    "moments": "A storyboard: objects with at, prompt and, optionally, the ids image and clip.",
    "size": "Columns and rows in pixels, as in 64x64 or [64, 64].",
    "seconds": "Duration of the clip.",
    "fps": "Frames per second.",
    "steps": "Number of sampler steps.",
    "guidance": "Scale of classifier-free guidance; 1 is no guidance.",
    "guidance_interval": "Noise levels, from and to, at which guidance applies.",
    "guidance_rescale": "How much of the contrast that guidance adds is taken back, 0 to 1.",
    "frame_guidance": "Scale of guidance towards the given frames.",
    "negative_prompt": "What to guide away from.",
    "sampler": "The sampler: euler, heun or dpm.",
    "camera": f"How the camera moves, in place of what the prompt says: {', '.join(CAMERA_MOVES)}, several joined by "
    f"+, or six numbers for {', '.join(CAMERA_AXES)}. Only for models that were trained with it.",
    "seed": "Seed of the noise; the same seed and request give the same clip.",
    "watermark": "A corner for a small watermark that says AI.",
    "model": "The model, see GET /v1/models.",
}


class ErrorDetail(BaseModel):
    """An error."""

    code: str | None = Field(None, examples=["failed"])
    message: str = Field(examples=["size must be one this model was trained for: 64x64; got 64x66"])


class Video(BaseModel):
    """A video: queued, in progress, completed or failed."""

    id: str = Field(examples=["187a3f7d9c1e40b25f0a93cd"])
    object: str = "video"
    model: str = Field(examples=["first"])
    status: str = Field(description="queued, in_progress, completed or failed", examples=["in_progress"])
    progress: int = Field(description="percent", examples=[41])
    created_at: int = Field(description="seconds since 1970", examples=[1795368000])
    completed_at: int | None = None
    expires_at: int | None = None
    prompt: str | None = Field(None, examples=["a large red ball bounces on the grass"])
    seconds: str = Field(description="of the whole clip, that of its input included", examples=["2.125"])
    size: str = Field(examples=["64x64"])
    remixed_from_video_id: str | None = None
    error: ErrorDetail | None = None
    ahead: int | None = Field(None, description="number of videos before it, while it waits", examples=[None])
    eta: float | None = Field(None, description="seconds until the present phase ends", examples=[3.2])
    phase: str = Field("", description="the present phase", examples=["sampling"])
    mode: str = Field("text-to-video", examples=["text-to-video"])
    seed: int = Field(0, examples=[7])
    note: str | None = Field(None, description="a remark on how the job went")
    unlearned_words: list[str] = Field([], description="words of the prompt that the model never learned")
    content: str = Field("", description="path of its file", examples=["/v1/videos/187a3f7d9c1e40b25f0a93cd/content"])


class VideoList(BaseModel):
    """A page of videos; request the next one with `after` set to the last id."""

    object: str = "list"
    data: list[Video]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class Deleted(BaseModel):
    """The result of deleting a video or file. A video that is being generated stops after its current step; delete it
    again after that.
    """

    id: str
    object: str = "video.deleted"
    deleted: bool


PURPOSE = "user_data"  # of all uploads


class FileObject(BaseModel):
    """An uploaded file; later requests name it by its id."""

    id: str = Field(examples=["file-" + "0" * 64])
    object: str = "file"
    bytes: int
    created_at: int
    filename: str = Field(description="named by its content, not as it was sent")
    purpose: str = PURPOSE
    status: str = "processed"


class FileList(BaseModel):
    """A page of uploaded files; request the next one with `after` set to the last id."""

    object: str = "list"
    data: list[FileObject]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class Model(BaseModel):
    id: str = Field(examples=["first"])
    object: str = "model"
    created: int = 0
    owned_by: str = "longtake"


class ModelList(BaseModel):
    object: str = "list"
    data: list[Model]


class ErrorResponse(BaseModel):
    """Why a request was refused, in one sentence."""

    error: ErrorDetail


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorResponse, "description": description}
    for code, description in (
        (400, "The request is invalid; the message says what is valid."),
        (401, "The token is missing or invalid."),
        (404, "You have no video or file with this id."),
        (422, "The Idempotency-Key was sent with another request before."),
        (
            429,
            "You have too many unfinished videos or calls, or too much on the disk; try again later, or delete some.",
        ),
    )
}
BODY_FIELDS = (
    "prompt",
    "model",
    "seconds",
    "size",
    "seed",
    "steps",
    "guidance",
    "negative_prompt",
    "mode",
    "image",
    "clip",
)
BODY_FIELDS = (*BODY_FIELDS, *(name for name in CLIENT_FIELDS if name not in BODY_FIELDS))
EXAMPLES = {
    "text-to-video": {
        "summary": "A clip from text",
        "value": {"prompt": "a large red ball bounces on the grass", "seed": 7},
    },
    "text-to-image": {
        "summary": "An image from text",
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


def body_schema(
    required: tuple[str, ...], examples: dict[str, Any], files: tuple[str, ...] = FILE_FIELDS
) -> dict[str, Any]:
    """Return the OpenAPI description of a body with a Request's fields: JSON, or a form with files."""
    schema = TypeAdapter(Request).json_schema()
    moments = schema.pop("$defs")["Moment"]
    types = schema["properties"]
    types["moments"] = {"anyOf": [{"items": moments, "type": "array"}, {"type": "null"}], "default": None}
    for name in ("size", "seconds"):  # numbers may be strings
        types[name] = {"anyOf": [*types[name]["anyOf"], {"type": "string"}], "default": None}
    properties = {
        name: types[name] | ({"description": FIELD_DESCRIPTIONS[name]} if name in FIELD_DESCRIPTIONS else {})
        for name in BODY_FIELDS
    }
    parts = {
        name: {"type": "string", "format": "binary", "description": FIELD_DESCRIPTIONS.get(name, "")} for name in files
    }
    if IMAGE_ALIAS in parts:
        parts[IMAGE_ALIAS]["description"] = FIELD_DESCRIPTIONS["image"]
    base = {"type": "object", "required": list(required)}
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": base | {"properties": properties}, "examples": examples},
                "multipart/form-data": {"schema": base | {"properties": properties | parts}},
            },
        }
    }
