"""The cost of a clip before it is made: FLOPs and memory, from the shapes of its model and its canvas alone.

A request takes the same way as in `Pipeline.generate`: the same modes, windows and guidance, with inputs of zeros. Its
windows are counted (`sampling_cost.py`) on a canvas without long uniform stretches (`shortening.py`), so that an
estimate takes no longer for a longer clip.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from safetensors import safe_open
from torch import Tensor

from captioning.camera import CAMERA_VALUES
from captioning.prompt_encoder import PromptEncoder
from captioning.text_encoder import OWN_ENCODERS, load_tokenizer, load_transformers_tokenizer
from captioning.text_encoder import SUBFOLDERS as TEXT_SUBFOLDERS
from dit.flops import decode_bytes, decode_flops, encode_flops, forward_bytes
from dit.given import LAST, MIDDLE, Box, ModeInputs, PlacedClip, padding_frames, place_latents
from dit.inputs import TRIM_KEY
from dit.model import DiT
from dit.modes import MODES
from dit.pipeline import Pipeline
from dit.request import LATENTS_SUFFIX, Request
from dit.sampling_cost import SamplingCounter
from dit.settings import SETTINGS, hash_of_model, read_settings
from dit.shortening import Painting, paint_shortened
from vae.model import VideoVAE
from vae.video.sandbox import read_duration
from vae.weights import CONFIG, load_strictly, read_config, read_json, weights_in

MAX_LATENT_FRAMES = 1024  # that other makers' models count one by one; beyond, their costs grow in proportion
LATENT_COPIES = 6  # in memory while sampling: noise, canvas, result, and a step's own


@dataclass(frozen=True)
class Cost:
    """The cost of a resolved request on a model.

    FLOPs: of encoding prompts, of encoding input files, of denoising, of the anchors of windows, of decoding. Bytes: of
    weights, of one forward pass, of decoding one piece, of the clip's latents. `evaluations` is the number of forward
    passes of the transformer (NFE), each over `tokens` tokens; `pixels` counts those of all frames.
    """

    request: Request
    tokens: int
    evaluations: int
    frames: int
    pixels: int
    text_flops: int
    input_flops: int
    denoise_flops: int
    anchor_flops: int
    decode_flops: int
    weight_bytes: int
    forward_bytes: int
    decode_bytes: int
    latent_bytes: int

    @property
    def flops(self) -> int:
        """The sum of all FLOPs."""
        return self.text_flops + self.input_flops + self.denoise_flops + self.anchor_flops + self.decode_flops

    def working_bytes(self, pack_size: int = 1) -> int:
        """Return the peak memory while `pack_size` such clips are one pack, the program's own not included."""
        sampling = pack_size * self.forward_bytes
        return self.weight_bytes + pack_size * self.latent_bytes + max(sampling, self.decode_bytes)


class CostModel:
    """A model as far as costs depend on it; its transformer may be on the meta device, its text encoder missing."""

    def __init__(self, pipeline: Pipeline, text_parameters: int, text_width: int, text_layers: int, head: int = 0):
        """`text_width` and `text_layers` are those of a text encoder of ours, 0 for another one; `head` the outputs of
        its last two layers on the pooled vector, 0 where there is one.
        """
        self.pipeline, self.text_parameters = pipeline, text_parameters
        self.text_width, self.text_layers, self.head = text_width, text_layers, head
        networks = (pipeline.transformer, pipeline.vae)
        parameters = sum(value.numel() for network in networks for value in network.parameters())
        self.weight_bytes = 4 * (text_parameters + parameters)

    @classmethod
    def of(cls, pipeline: Pipeline) -> CostModel:
        """Return the cost model of a loaded model."""
        encoder = pipeline.text_encoder
        shape = text_shape(type(encoder).__name__, encoder.config)
        return cls(pipeline, sum(value.numel() for value in encoder.parameters()), *shape)

    @classmethod
    def read(cls, folder: Path) -> CostModel:
        """Return the cost model of a model folder, of which it loads only the VAE and the tokenizer.

        Raises WeightsError where the folder is not a model.
        """
        with torch.device("meta"):
            transformer = DiT.from_config(read_config(DiT, folder / "transformer"))
        text = read_json(folder / TEXT_SUBFOLDERS[0] / CONFIG)
        name = text.get("_class_name", "")
        load = load_tokenizer if name in OWN_ENCODERS else load_transformers_tokenizer
        tokenizer = load(folder / TEXT_SUBFOLDERS[1])
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
        vae = load_strictly(VideoVAE, folder / "vae")
        pipeline = Pipeline(transformer, vae, None, tokenizer, scheduler, read_settings(folder / SETTINGS))
        pipeline.hash = hash_of_model(folder)
        parameters = sum(map(count_values, weights_in(folder / TEXT_SUBFOLDERS[0])))
        return cls(pipeline, parameters, *text_shape(name, text))

    def cost(self, request: Request) -> Cost:
        """Return the cost of a request; raises what `Pipeline.resolve` and the modes raise."""
        pipeline, vae = self.pipeline, self.pipeline.vae
        request = pipeline.resolve(request)
        painting, input_flops = self.paint(request)
        canvas, window, T = painting.canvas, painting.window, painting.latent_frames
        _, H, W = canvas.denoise_mask.shape
        counts = SamplingCounter(pipeline, request, self.text_flops).count(painting)
        decoding = decode_flops(vae, T, H, W)
        frames = vae.frame_count(T)
        if canvas.periodic:  # `Pipeline.frames` decodes a loop twice, and once more from its last frame
            decoding += encode_flops(vae, 1, H, W) + decode_flops(vae, 1 + 2 * T, H, W)
            frames = T * vae.stride[0]
        frames -= sum(canvas.trim)
        columns, rows = request.size or pipeline.settings.size
        tokens = pipeline.token_count((window, H, W))
        return Cost(
            request=request,
            tokens=tokens,
            evaluations=counts.evaluations,
            frames=frames,
            pixels=frames * columns * rows,
            text_flops=counts.text_flops,
            input_flops=input_flops,
            denoise_flops=counts.denoise_flops,
            anchor_flops=counts.anchor_flops,
            decode_flops=decoding,
            weight_bytes=self.weight_bytes,
            forward_bytes=forward_bytes(pipeline.transformer.dit_config, tokens * counts.most_passes),
            decode_bytes=decode_bytes(vae, min(T, pipeline.decode_latent_frames), H, W),
            latent_bytes=4 * LATENT_COPIES * vae.channels * T * H * W,
        )

    def paint(self, request: Request) -> tuple[Painting, int]:
        """Return the shortened canvas of a resolved request, and the FLOPs of encoding its files."""
        pipeline, durations = self.pipeline, dict[str, float]()
        last: list[EmptyInputs] = []

        def make_inputs(short: Request) -> EmptyInputs:
            last[:] = [self.empty_inputs(short, durations)]
            return last[0]

        longest = max(pipeline.trained_lengths(request), default=1)
        painting = paint_shortened(request, longest, make_inputs, pipeline.window_length)
        return painting, sum(last[0].encode_flops)

    def empty_inputs(self, request: Request, durations: dict[str, float]) -> EmptyInputs:
        """Return the inputs of a resolved request, all zeros; `durations` are those of its files, once read."""
        shape, fps = self.pipeline.latent_shape(request)
        return EmptyInputs.of(request, self.pipeline, shape, fps, encode_flops, durations)

    def cheaper(self, request: Request) -> list[Request]:
        """List requests like a resolved one that cost less, the most similar first."""
        return cheaper_requests(self.pipeline, request)

    def seconds(self, request: Request) -> float:
        """Return how long the clip of a request will last; raises what the modes raise."""
        painting, _ = self.paint(request)
        vae, frames = self.pipeline.vae, painting.latent_frames
        fps = request.fps or self.pipeline.settings.fps
        shown = frames * vae.stride[0] if painting.canvas.periodic else vae.frame_count(frames)
        return (shown - sum(painting.canvas.trim)) / fps

    def extrapolated(self, request: Request, latent_frames: int, fps: float) -> Cost:
        """Return the cost of a long clip in proportion to one of MAX_LATENT_FRAMES."""
        shorter = (MAX_LATENT_FRAMES - 1) * self.pipeline.vae.stride[0] / fps
        cost, ratio = self.cost(replace(request, seconds=shorter)), latent_frames / MAX_LATENT_FRAMES
        flops = ("text_flops", "denoise_flops", "anchor_flops", "decode_flops")
        growing = ("evaluations", "frames", "pixels", *flops, "latent_bytes")
        return replace(cost, request=request, **{name: round(ratio * getattr(cost, name)) for name in growing})

    def text_flops(self, token_counts: Sequence[int]) -> int:
        """Return the FLOPs of encoding prompts of these token counts, padded to the longest."""
        B, L, D = len(token_counts), max(token_counts), self.text_width
        if not D:  # another text encoder: each of its weights once per token
            return 2 * self.text_parameters * B * L
        return 2 * B * (self.text_layers * (12 * L * D * D + 2 * L * L * D) + D * D + self.head * D)


def text_shape(class_name: str, config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return width, layers, and the outputs of the last layer on the pooled vector; zeros for encoders of others."""
    if class_name not in OWN_ENCODERS:
        return 0, 0, 0
    return config["width"], config["layers"], CAMERA_VALUES if class_name == PromptEncoder.__name__ else 0


@dataclass(frozen=True)
class EmptyInputs(ModeInputs):
    """A mode's inputs for an estimate: clips of the right length, all zeros."""

    encode_flops: list[int] = field(default_factory=list)  # of each file

    @classmethod
    def of(
        cls,
        request: Request,
        pipeline: Pipeline,
        shape: tuple[int, int, int, int],
        fps: float,
        cost_of_encoding: Callable[[Any, int, int, int], int],
        durations: dict[str, float],
    ) -> EmptyInputs:
        """Return empty inputs for a resolved request; reads no more of its files than their durations, once.

        `cost_of_encoding` gives the FLOPs of encoding latents (T, H, W) with a VAE.
        """
        (C, _, H, W), vae, flops = shape, pipeline.vae, list[int]()
        hashes = {path for path, _ in request.hashes or ()}

        def encode(T: int, kept: int | None = None) -> Tensor:
            flops.append(cost_of_encoding(vae, T, H, W))
            return torch.zeros(C, kept or T, H, W)

        def clip(path: str, where: str, box: Box | None) -> PlacedClip:
            time = vae.stride[0]
            if path + LATENTS_SUFFIX in hashes and box is None:
                stored = stored_shape(path + LATENTS_SUFFIX)
                placed = place_latents(torch.zeros(*stored[0]), where, time, stored[1])
                if tuple(stored[0][2:]) == (H, W) and placed is not None:
                    return placed
            if path not in durations:
                durations[path] = duration_of(path)
            frames = max(1, round(durations[path] * fps))
            before, after = padding_frames(frames, where, time)
            latents = encode(1 + (before + frames + after - 1) // time)
            if where in (LAST, MIDDLE):
                return PlacedClip(latents[:, 1:], before - 1, after, frames)
            return PlacedClip(latents, before, after, frames)

        return cls(
            *(request, shape, fps, vae.stride, pipeline.patch),
            image=lambda path: encode(1),
            later_image=lambda path: encode(2, 1),
            clip=clip,
            mask=lambda path, T: torch.ones(T, H, W),
            encode_flops=flops,
        )


def stored_shape(path: str) -> tuple[list[int], tuple[int, int]]:
    """Return the shape of stored latents, and how many of their frames at both ends the clip's file does not have."""
    with safe_open(path, framework="pt") as stored:
        trim = (stored.metadata() or {}).get(TRIM_KEY, "0 0").split()
        return stored.get_slice("latents").get_shape(), (int(trim[0]), int(trim[1]))


def duration_of(path: str) -> float:
    """Read the duration of a video in seconds; once, until the file changes."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return read_duration(path)  # which says what is wrong
    return _duration_of(path, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _duration_of(path: str, *stamp: int) -> float:
    return read_duration(path)


def count_values(path: Path) -> int:
    """Return the number of values in a file of weights."""
    with safe_open(path, framework="pt") as stored:
        return sum(math.prod(stored.get_slice(name).get_shape()) for name in stored.keys())  # noqa: SIM118


def cheaper_requests(pipeline: Pipeline, request: Request) -> list[Request]:
    """List requests like a resolved one that cost less, the most similar first.

    They have trained sizes and durations; in modes of any length, the duration is halved repeatedly.
    """
    mode, settings = MODES[request.mode], pipeline.settings
    columns, rows = request.size or settings.size
    fps = request.fps or settings.fps
    seconds = request.seconds or 0.0
    found: list[tuple[float, Request]] = []
    for x, y, frames in settings.formats:
        if mode.still != (frames == 1) or x * y > columns * rows:
            continue
        durations = [None] if mode.still or not mode.timed or not seconds else [frames / fps]
        if mode.any_length and seconds:
            durations = [seconds / 2**n for n in range(12) if seconds / 2**n >= frames / fps] or durations
        for duration in durations:
            if (duration or 0) <= seconds and ((x, y), duration or seconds) != ((columns, rows), seconds):
                distance = math.log(columns * rows / (x * y)) + math.log(seconds / duration if duration else 1)
                found.append((distance, replace(request, size=(x, y), seconds=duration)))
    return [request for _, request in sorted(found, key=lambda one: one[0])]
