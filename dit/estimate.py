"""What a clip costs before it is made: arithmetic and memory, from the shapes of its model and its canvas alone.

The canvas is painted as it will be, with nothing in the place of files, so that each mode costs what it dreams.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer

from captioning.text_encoder import SUBFOLDERS as TEXT_FILES
from captioning.text_encoder import TextTower, load_tokenizer, tokenize
from dit.canvas import Canvas, blank
from dit.flops import decode_bytes, decode_flops, encode_flops, forward_bytes, forward_flops, linear_preview_flops
from dit.guidance import Script, plan
from dit.inputs import LATENTS
from dit.model import DiT
from dit.modes import MODES, Ask
from dit.packing import grid_of, patchify
from dit.pipeline import Pipeline, hash_of_model
from dit.request import Request
from dit.settings import SETTINGS, read_settings
from dit.windows import beginning, places_of
from vae.model import VideoVAE
from vae.video.sandbox import read_duration
from vae.weights import CONFIG, load_strictly, read_config, read_json, weights_in

LATENT_COPIES = 6  # noise, canvas, what is found, and a step's own
MOST_STEPS = 1024  # time steps of latents that are followed one by one


@dataclass(frozen=True)
class Cost:
    """What a resolved request costs on a model. FLOPs: of the prompts, of files that are given, of the transformer, of
    the joins of windows, of showing it. Bytes: of weights, of one forward pass, of one piece that is shown, of the
    whole clip's latents.

    The transformer looks `looks` times, in all, at `tokens` tokens each; `pixels` are those of all frames.
    """

    request: Request
    tokens: int
    looks: int
    frames: int
    pixels: int
    text: int
    given: int
    dream: int
    joins: int
    show: int
    weights: int
    dreaming: int
    showing: int
    latents: int

    @property
    def flops(self) -> int:
        """All arithmetic."""
        return self.text + self.given + self.dream + self.joins + self.show

    def working(self, together: int = 1) -> int:
        """Return the bytes in use at the fullest moment beside the program itself, where so many clips are one pack."""
        return self.weights + together * self.latents + max(together * self.dreaming, self.showing)


class Outline:
    """A model as far as costs go; its transformer and text encoder need have no weights."""

    def __init__(self, pipeline: Pipeline, text: int, width: int, layers: int):
        """`text` counts the text encoder's weights; width and layers are a TextTower's, or 0."""
        self.pipeline, self.text, self.width, self.layers = pipeline, text, width, layers
        parts = (pipeline.transformer, pipeline.vae)
        self.weights = 4 * (text + sum(value.numel() for part in parts for value in part.parameters()))

    @classmethod
    def of(cls, pipeline: Pipeline) -> Outline:
        """Return the outline of a model that is loaded."""
        tower = pipeline.text_encoder
        ours = (tower.config["width"], tower.config["layers"]) if isinstance(tower, TextTower) else (0, 0)
        return cls(pipeline, sum(value.numel() for value in tower.parameters()), *ours)

    @classmethod
    def read(cls, folder: Path) -> Outline:
        """Return the outline of a model folder, most of it not loaded; raises WeightsError for what is none."""
        with torch.device("meta"):
            net = DiT.from_config(read_config(DiT, folder / "transformer"))
        words = read_json(folder / TEXT_FILES[0] / CONFIG)
        ours = words.get("_class_name") == TextTower.__name__
        tokenizer = (load_tokenizer if ours else AutoTokenizer.from_pretrained)(folder / TEXT_FILES[1])
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
        vae = load_strictly(VideoVAE, folder / "vae")
        pipeline = Pipeline(net, vae, None, tokenizer, scheduler, read_settings(folder / SETTINGS))
        pipeline.hash = hash_of_model(folder)
        shape = (words["width"], words["layers"]) if ours else (0, 0)
        return cls(pipeline, sum(map(values_in, weights_in(folder / TEXT_FILES[0]))), *shape)

    def cost(self, request: Request) -> Cost:
        """Return what a request costs; raises what `Pipeline.resolve` and the modes raise."""
        pipeline, vae = self.pipeline, self.pipeline.vae
        request = pipeline.resolve(request)
        shape, fps = pipeline.shape_of(request)
        if shape[1] > MOST_STEPS and not request.moments:
            return self.longer(request, shape[1] / MOST_STEPS, (MOST_STEPS - 1) * vae.stride[0] / fps)
        ask = Empty.of(request, pipeline, shape, fps)
        canvas = MODES[request.mode].paint(ask)
        window = pipeline.window_for(request, canvas)
        T, H, W = canvas.denoise_mask.shape
        work = Work(pipeline, request, canvas, window, self)
        count, dream, joins = work.done()
        show = decode_flops(vae, T, H, W)
        if canvas.periodic:
            show += encode_flops(vae, 1, H, W) + decode_flops(vae, 1 + 2 * T, H, W)
            frames = T * vae.stride[0]
        else:
            frames = vae.frame_count(T)
        columns, rows = request.size or pipeline.settings.size
        tokens = math.prod(grid_of((window, H, W), pipeline.transformer.dit_config.patch))
        return Cost(
            request=request,
            tokens=tokens,
            looks=count,
            frames=frames,
            pixels=frames * columns * rows,
            text=work.text,
            given=sum(ask.coded),
            dream=dream,
            joins=joins,
            show=show,
            weights=self.weights,
            dreaming=forward_bytes(pipeline.transformer.dit_config, tokens * work.most),
            showing=decode_bytes(vae, min(T, pipeline.portion), H, W),
            latents=4 * LATENT_COPIES * canvas.clean_latents.numel(),
        )

    def longer(self, request: Request, times: float, seconds: float) -> Cost:
        """Return what a clip costs that is so many times as long as one of some seconds: nearly in proportion."""
        found = self.cost(replace(request, seconds=seconds))
        grows = ("looks", "frames", "pixels", "text", "dream", "joins", "show", "latents")
        return replace(found, request=request, **{name: round(times * getattr(found, name)) for name in grows})

    def words_flops(self, counts: list[int]) -> int:
        """Return the floating-point operations of reading prompts of so many words, padded to the longest."""
        B, L, D = len(counts), max(counts), self.width
        if not D:  # somebody else's: each of its weights once a word
            return 2 * self.text * B * L
        return 2 * B * (self.layers * (12 * L * D * D + 2 * L * L * D) + D * D)


@dataclass(frozen=True)
class Empty(Ask):
    """What a mode may look at where nothing is read: films of the right length with nothing on them."""

    coded: list[int] = field(default_factory=list)  # FLOPs of coding each file

    @classmethod
    def of(cls, request: Request, pipeline: Pipeline, shape: tuple[int, int, int, int], fps: float) -> Empty:
        """Return what stands for a resolved request's files."""
        (C, _, H, W), vae, coded = shape, pipeline.vae, list[int]()
        kept = {path for path, _ in request.hashes or ()}

        def code(T: int, seen: int | None = None) -> Tensor:
            coded.append(encode_flops(vae, T, H, W))
            return torch.zeros(C, seen or T, H, W)

        def steps(path: str) -> int:
            frames = max(1, round(read_duration(path) * fps))
            return 1 + (frames - 1) // vae.stride[0]

        def film(path: str) -> Tensor:
            if path + LATENTS in kept:
                with safe_open(path + LATENTS, framework="pt") as stored:
                    kept_shape = stored.get_slice("latents").get_shape()
                if tuple(kept_shape[2:]) == (H, W):
                    return torch.zeros(*kept_shape)
            return code(steps(path))

        return cls(
            *(request, shape, fps, vae.stride, pipeline.transformer.dit_config.patch),
            picture=lambda path: code(1),
            still=lambda path: code(2, 1),
            film=film,
            placed=lambda path, box: code(steps(path)),
            mask=lambda path, T: torch.ones(T, H, W),
            coded=coded,
        )


class Work:
    """How often the transformer looks at a canvas, and what that takes, followed as `Pipeline.dream_jobs` will go."""

    def __init__(self, pipeline: Pipeline, request: Request, canvas: Canvas, window: int, outline: Outline):
        self.pipeline, self.request, self.canvas, self.window, self.outline = pipeline, request, canvas, window, outline
        self.text, self.most, self.found = 0, 0, dict[tuple, tuple[int, int]]()
        self.heard: dict[tuple[str, ...], tuple[int, ...]] = {}

    def done(self) -> tuple[int, int, int]:
        """Return looks, the transformer's FLOPs, and those of the pictures before windows."""
        canvas, vae, (steps, H, W) = self.canvas, self.pipeline.vae, self.canvas.denoise_mask.shape
        looks, dream, pictures = 0, 0, 0
        rest = canvas
        if beginning(canvas, self.window):
            first = canvas.crop(0, self.window)
            looks, dream = self.looks(list(enumerate(self.times(first))), lambda number: [(0, first)])
            rest, self.heard = canvas.keep(canvas.clean_latents[:, : self.window], 0), {}

        def parts(number: int) -> Iterator[tuple[int, Canvas]]:
            nonlocal pictures
            for cut, place in places_of(rest, self.window, number, canvas):
                pictures += bool(place[0] or canvas.periodic)
                yield (
                    cut,
                    replace(
                        rest,
                        clean_latents=rest.clean_latents[:, place],
                        denoise_mask=rest.denoise_mask[place],
                        periodic=False,
                    ),
                )

        whole = steps == self.window and not canvas.periodic
        shape = blank((1, self.window, H, W), canvas.fps)
        more = self.looks(list(enumerate(self.times(shape))), (lambda number: [(0, rest)]) if whole else parts)
        joins = pictures * (linear_preview_flops(vae, 2, H, W) + encode_flops(vae, 1, H, W))
        if canvas.periodic:
            joins += steps * linear_preview_flops(vae, 3, H, W)
        return looks + more[0], dream + more[1], joins

    def looks(self, times: list[tuple[int, Tensor]], parts: Callable[[int], Iterable]) -> tuple[int, int]:
        """Return how often the transformer looks at the parts that it is shown at some times, and the FLOPs of that."""
        looks, dream = 0, 0
        for number, time in times:
            for start, part in parts(number):
                script = Script.of(self.request, part, start)
                said = tuple(sorted({*script.prompts, script.negative}))
                if said not in self.heard:
                    self.heard[said] = tokenize(self.pipeline.tokenizer, list(said))[1]
                    self.text += self.outline.words_flops(list(self.heard[said]))
                key = script.prompts, part.denoise_mask.numpy().tobytes(), number
                if key not in self.found:
                    words = dict(zip(said, self.heard[said], strict=True))
                    self.found[key] = self.look(script, part, part.denoise_mask * time, words)
                count, flops = self.found[key]
                looks, dream = looks + count, dream + flops
        return looks, dream

    def times(self, part: Canvas) -> Iterator[Tensor]:
        """Yield the times at which the sampler asks for a velocity."""
        times = self.pipeline.times(self.request, part)
        for step, time in enumerate(times[:-1]):
            yield time
            if self.request.sampler == "heun" and step < len(times) - 2:
                yield times[step + 1]

    def look(self, script: Script, part: Canvas, level: Tensor, words: dict[str, int]) -> tuple[int, int]:
        """Return how often the transformer looks for one velocity, and the FLOPs of that."""
        shape = self.pipeline.transformer.dit_config
        looks, _ = plan(script, self.request, part, part.clean_latents, part.clean_latents, level)
        self.most = max(self.most, len(looks))
        longest, flops = max(words[look.prompt] for look in looks), 0
        for look in looks:
            rows = patchify(look.level[None], shape.patch).amax(1).unique()
            tokens = math.prod(grid_of(look.level.shape, shape.patch))
            flops += forward_flops(shape, tokens, words[look.prompt], len(rows), longest)
        return len(looks), flops


def values_in(path: Path) -> int:
    """Return how many numbers a file of weights holds."""
    with safe_open(path, framework="pt") as stored:
        return sum(math.prod(stored.get_slice(name).get_shape()) for name in stored.keys())  # noqa: SIM118


def shorter(pipeline: Pipeline, request: Request) -> list[Request]:
    """List a resolved request's neighbours that cost less, the nearest first: sizes and durations that the model was
    trained for, or in modes of any length, shorter ones.
    """
    mode, settings = MODES[request.mode], pipeline.settings
    columns, rows = request.size or settings.size
    fps = request.fps or settings.fps
    seconds = request.seconds or 0.0
    near: list[tuple[float, Request]] = []
    for x, y, frames in settings.formats:
        if mode.still != (frames == 1) or x * y > columns * rows:
            continue
        lasting = [None] if mode.still or not mode.timed or not seconds else [frames / fps]
        if mode.free and seconds:
            lasting = [seconds / 2**n for n in range(12) if seconds / 2**n >= frames / fps] or lasting
        for duration in lasting:
            if (duration or 0) <= seconds and ((x, y), duration or seconds) != ((columns, rows), seconds):
                away = math.log(columns * rows / (x * y)) + math.log(seconds / duration if duration else 1)
                near.append((away, replace(request, size=(x, y), seconds=duration)))
    return [request for _, request in sorted(near, key=lambda one: one[0])]
