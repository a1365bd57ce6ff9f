"""All parts joined: a request becomes latents, and latents become pixels."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from captioning.text_encoder import FILES as TEXT_FILES
from captioning.text_encoder import Words, encode, load_text_encoder, tokenise
from dit.canvas import Canvas
from dit.flow import schedule
from dit.model import DiT
from dit.modes import MODES, Mode
from dit.packing import grid_of, pack, unpack
from dit.request import METHODS, Request, RequestError
from dit.sampler import guide, noise_for, sample
from vae.media import read_picture
from vae.model import VideoVAE
from vae.pixels import fit_picture
from vae.weights import WeightsError, hash_of_file, load_strictly, read_json, weights_in

SETTINGS = "longtake.json"
Progress = Callable[[int, int], None]  # steps done, steps in all


@dataclass(frozen=True)
class Dream:
    """What became of a request: the request with every default filled in, and the latents (C, T, H, W)."""

    request: Request
    latents: Tensor


@dataclass(frozen=True)
class Settings:
    """What a model was trained for, and what fills a request's gaps.

    `formats` are the (columns, rows, frames) of training; `size` is (columns, rows) in pixels.
    """

    formats: tuple[tuple[int, int, int], ...] = ((64, 64, 17), (64, 64, 1))
    fps: float = 8.0
    size: tuple[int, int] = (64, 64)
    seconds: float = 2.125
    steps: int = 30
    guidance: float = 4.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    method: str = "euler"


class Pipeline(DiffusionPipeline):
    """A model folder in diffusers' layout, its settings in `longtake.json`, and `generate`."""

    def __init__(self, transformer, vae, text_encoder, tokenizer, scheduler, settings: Settings | None = None):
        super().__init__()
        self.register_modules(
            transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler
        )
        self.settings = settings or Settings()
        self.hash: str | None = None

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs) -> Pipeline:
        """Load a model folder, strictly; raises WeightsError naming what is missing, extra, misshapen or damaged."""
        folder = Path(folder)
        read_json(folder / "model_index.json")
        read_json(folder / "scheduler" / "scheduler_config.json")
        tokenizer, text_encoder = load_text_encoder(folder)
        pipeline = cls(
            load_strictly(DiT, folder / "transformer"),
            load_strictly(VideoVAE, folder / "vae"),
            text_encoder,
            tokenizer,
            FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
            read_settings(folder / SETTINGS),
        )
        parts = (path for part in ("transformer", "vae", TEXT_FILES[0]) for path in weights_in(folder / part))
        pipeline.hash = hash_of_file(folder / SETTINGS, *parts)
        return pipeline

    def save_pretrained(self, folder: str | Path, **kwargs) -> None:
        """Write the model folder that `from_pretrained` loads."""
        super().save_pretrained(folder, safe_serialization=True, **kwargs)
        (Path(folder) / SETTINGS).write_text(json.dumps(asdict(self.settings), indent=2))

    def resolve(self, request: Request) -> Request:
        """Check a request against this model and fill in its defaults; the result makes the same clip again.

        Raises RequestError with the rule, what was given and the remedy.
        """
        mode, settings = mode_of(request), self.settings
        if not request.prompt.strip():
            raise RequestError("a prompt must say something; got none, so describe the clip in a sentence")
        tokenise(self.tokenizer, [request.prompt, request.negative or ""])
        for field in mode.needs:
            if getattr(request, field) is None:
                raise RequestError(f"{request.mode} needs {field}; got none, so give --{field}")
        size = request.size or settings.size
        sizes = {
            (columns, rows): f"{columns}x{rows}"
            for columns, rows, frames in self.settings.formats
            if mode.still == (frames == 1)
        }
        if size not in sizes:
            known = ", ".join(sizes.values())
            raise RequestError(f"size must be one this model was trained for: {known}; got {size[0]}x{size[1]}")
        method = request.method or settings.method
        if method not in METHODS:
            raise RequestError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
        fps = self.settings.fps if request.fps is None else request.fps
        if fps != self.settings.fps:
            raise RequestError(f"fps must be what this model was trained for, {self.settings.fps:g}; got {fps:g}")
        steps = settings.steps if request.steps is None else request.steps
        if not 1 <= steps <= 1000:
            raise RequestError(f"steps must lie between 1 and 1000; got {steps}")
        guidance = settings.guidance if request.guidance is None else request.guidance
        if not 0 <= guidance <= 100:
            raise RequestError(f"guidance must lie between 0 and 100; got {guidance:g}")
        low, high = settings.interval if request.interval is None else request.interval
        if not 0 <= low <= high <= 1:
            raise RequestError(f"interval must be two rising noise levels from 0 to 1; got {low:g} and {high:g}")
        rescale = settings.rescale if request.rescale is None else request.rescale
        if not 0 <= rescale <= 1:
            raise RequestError(f"rescale must lie between 0 and 1; got {rescale:g}")
        if not 0 <= request.seed < 2**63:
            raise RequestError(f"seed must be a whole number from 0 to 2^63 - 1; got {request.seed}")
        seconds = settings.seconds if request.seconds is None else request.seconds
        seconds = None if mode.still else self.frames_for(size, seconds, fps) / fps
        return replace(
            request,
            size=size,
            seconds=seconds,
            fps=None if mode.still else fps,
            steps=steps,
            guidance=guidance,
            interval=(low, high),
            rescale=rescale,
            method=method,
            model_hash=self.hash,
        )

    def frames_for(self, size: tuple[int, int], seconds: float, fps: float) -> int:
        """Return how many frames last `seconds`, less than a latent's worth away; raises RequestError if untrained at
        this size.
        """
        trained = sorted(
            frames for columns, rows, frames in self.settings.formats if (columns, rows) == size and frames > 1
        )
        nearest = min(trained, key=lambda frames: abs(frames / fps - seconds))
        if not math.isfinite(seconds) or abs(nearest / fps - seconds) * fps >= self.vae.stride[0]:
            known = ", ".join(f"{frames / fps:.3g}" for frames in trained)
            raise RequestError(
                f"seconds must be one this model was trained for at {size[0]}x{size[1]}: {known}; got {seconds:g}"
            )
        return nearest

    @torch.no_grad()
    def generate(self, requests: list[Request], progress: Progress | None = None) -> Iterator[Dream]:
        """Make the clips of some requests, one after another, so that each is the same in any company.

        Yields a Dream a request, in order; decode it with `frames` or `pixels`. Raises RequestError before anything is
        made.
        """
        resolved = [self.resolve(request) for request in requests]
        canvases = [self.paint(request) for request in resolved]
        total, before = sum(request.steps or 0 for request in resolved), 0
        for request, canvas in zip(resolved, canvases, strict=True):
            latents = canvas.given
            words = encode([request.prompt, request.negative or ""], self.tokenizer, self.text_encoder)
            for step, found in enumerate(self.dream([canvas], [request], words)):
                (latents,) = found
                if progress:
                    progress(before + step + 1, total)
            before += request.steps or 0
            yield Dream(request, latents)

    def dream(self, canvases: list[Canvas], requests: list[Request], words: Words) -> Iterator[list[Tensor]]:
        """Dream canvases as one pack; yield their latents after each step.

        `words` are the prompts' and then what guidance leads away from, as many. Requests are resolved, and have the
        first one's steps and method.
        """
        steps, method, patch = requests[0].steps, requests[0].method, self.transformer.shape.patch
        assert steps is not None and method is not None, "dream takes resolved requests"
        counts = [math.prod(grid_of(canvas.level.shape, patch)) for canvas in canvases]
        times = [schedule(self.scheduler, steps, count) for count in counts]
        noise = [
            noise_for(request.seed, canvas.given.shape) for request, canvas in zip(requests, canvases, strict=True)
        ]
        noise = [start.to(canvas.given) for start, canvas in zip(noise, canvases, strict=True)]

        def velocity(xs: list[Tensor], levels: list[Tensor]) -> list[Tensor]:
            strengths = [strength_at(request, level) for request, level in zip(requests, levels, strict=True)]
            guided = [clip for clip, strength in enumerate(strengths) if (strength != 1).any()]
            looks = [*range(len(xs)), *guided]  # each clip with its prompt, and again what is guided
            said = words.repeat([*range(len(xs)), *[len(xs) + clip for clip in guided]])
            batch = pack(
                [xs[clip] for clip in looks],
                [levels[clip] for clip in looks],
                [canvases[clip].fps for clip in looks],
                patch,
            )
            tokens = self.transformer(batch, said.features, said.pooled, said.counts)
            found = unpack(tokens, batch.shapes, patch)
            for clip, without in zip(guided, found[len(xs) :], strict=True):
                found[clip] = guide(found[clip], without, strengths[clip], requests[clip].rescale or 0.0)
            return found[: len(xs)]

        return sample(velocity, canvases, noise, times, method)

    def paint(self, request: Request) -> Canvas:
        """Return the canvas of a resolved request."""
        mode = MODES[request.mode]
        columns, rows = request.size or self.settings.size
        fps = request.fps or self.settings.fps
        frames = 1 if mode.still else round((request.seconds or self.settings.seconds) * fps)
        shape = (self.vae.channels, *self.vae.latent_shape(frames, rows, columns))

        def code(path: str) -> Tensor:
            picture = fit_picture(read_picture(path), rows, columns)
            return self.vae.encode(picture[None].to(self.device))[0].cpu()

        canvas = mode.paint(request, shape, fps, code)
        return replace(canvas, given=canvas.given.to(self.device), level=canvas.level.to(self.device))

    @torch.no_grad()
    def frames(self, latents: Tensor, steps: int = 4) -> Iterator[Tensor]:
        """Show latents (C, T, H, W) as pieces (3, f, Y, X) in [-1, 1], `steps` latent time steps at a time, in constant
        memory.
        """
        past = None
        for piece in latents.split(steps, dim=1):
            pixels, past = self.vae.decode_piece(piece[None], past)
            yield pixels[0]

    def pixels(self, latents: Tensor) -> Tensor:
        """Show latents (C, T, H, W) as one clip (3, F, Y, X) in [-1, 1]."""
        return torch.cat(list(self.frames(latents)), dim=1)


def strength_at(request: Request, level: Tensor) -> Tensor:
    """Return how strongly to guide each latent at its noise level (T, H, W): within the request's interval alone
    (arXiv 2404.07724).
    """
    low, high = request.interval or (0.0, 1.0)
    strength = 1.0 if request.guidance is None else request.guidance
    return torch.where((level >= low) & (level <= high), strength, 1.0)


def read_settings(path: Path) -> Settings:
    """Read a model's settings; raises WeightsError where they are absent, damaged or another model's."""
    found = read_json(path)
    try:
        formats = tuple((int(columns), int(rows), int(frames)) for columns, rows, frames in found.pop("formats"))
        columns, rows = found.pop("size")
        low, high = found.pop("interval", Settings.interval)
        return Settings(formats=formats, size=(int(columns), int(rows)), interval=(float(low), float(high)), **found)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} does not say what the model was trained for: {error}") from error


def mode_of(request: Request) -> Mode:
    """Return a request's row of the MODES table; raises RequestError for an unknown mode."""
    if request.mode not in MODES:
        raise RequestError(f"mode must be one of {', '.join(MODES)}; got {request.mode!r}")
    return MODES[request.mode]
