"""All parts joined: a request becomes latents, and latents become pixels."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from captioning.text_encoder import SUBFOLDERS as TEXT_FILES
from captioning.text_encoder import TextEmbeddings, encode_prompts, load_text_encoder, tokenize
from dit.batching import Job, packed
from dit.canvas import Canvas, blank
from dit.flow import sigma_schedule
from dit.guidance import Look, Script, plan
from dit.inputs import ask_of, hashed
from dit.model import DiT
from dit.modes import MODES, Mode
from dit.packing import grid_of, pack, unpack
from dit.request import NO_UPSAMPLER, SAMPLERS, SIDES, Request, RequestError, check_values
from dit.sampler import StepCallback, VelocityFn, sample
from dit.settings import SETTINGS, Settings, read_settings
from dit.windows import Windows, beginning, cut_open, window_of
from vae.model import VideoVAE
from vae.weights import hash_of_file, load_strictly, read_json, weights_in

Progress = Callable[[int, int], None]  # steps done, steps in all
Watch = Callable[[int, Tensor], None]  # a request's number, and a rough view (3, F, Y, X) of where its clip is heading
WATCHED = 5  # every so many steps
WATCHED_STEPS = 32  # time steps of latents, at most, that a view shows


@dataclass(frozen=True)
class Dream:
    """What became of a request: the request with every default filled in, and the latents (C, T, H, W), which may be
    a circle.
    """

    request: Request
    latents: Tensor
    circle: bool = False


class Pipeline(DiffusionPipeline):
    """A model folder in diffusers' layout, its settings in `longtake.json`, and `generate`."""

    def __init__(self, transformer, vae, text_encoder, tokenizer, scheduler, settings: Settings | None = None):
        super().__init__()
        self.register_modules(
            transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler
        )
        self.settings = settings or Settings()
        self.hash: str | None = None
        self.sparing = False  # of memory: one look and one latent time step at a time, which takes longer

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
        pipeline.hash = hash_of_model(folder)
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
        if not request.prompt.strip() and not (request.moments and "moments" in mode.reads):
            raise RequestError("a prompt must say something; got none, so describe the clip in a sentence")
        if request.prompt.strip() and request.upsample not in (None, NO_UPSAMPLER) and not request.upsampled_prompt:
            raise RequestError(
                f"upsample needs upsampled_prompt; got only {request.upsample!r}, so let app.render write it"
            )
        tokenize(
            self.tokenizer, [request.effective_prompt, request.negative_prompt or "", *(m.prompt for m in request.moments or ())]
        )
        for field in mode.needs:
            if not getattr(request, field):
                flag = "keyframe" if field == "keyframes" else field
                raise RequestError(f"{request.mode} needs {field}; got none, so give --{flag}")
        size = request.size or settings.size
        check_values(replace(request, size=size))
        if request.moments and "moments" in mode.reads and request.prompt.strip():
            raise RequestError("moments have words of their own; got a prompt beside them, so leave it out")
        sizes = {
            (columns, rows): f"{columns}x{rows}"
            for columns, rows, frames in self.settings.formats
            if mode.still == (frames == 1)
        }
        if size not in sizes:
            known = ", ".join(sizes.values())
            raise RequestError(f"size must be one this model was trained for: {known}; got {size[0]}x{size[1]}")
        sampler = request.sampler or settings.sampler
        if sampler not in SAMPLERS:
            raise RequestError(f"sampler must be one of {', '.join(SAMPLERS)}; got {sampler!r}")
        fps = self.settings.fps if request.fps is None else request.fps
        if fps != self.settings.fps:
            raise RequestError(f"fps must be what this model was trained for, {self.settings.fps:g}; got {fps:g}")
        steps = settings.steps if request.steps is None else request.steps
        if not 1 <= steps <= 1000:
            raise RequestError(f"steps must lie between 1 and 1000; got {steps}")
        guidance = settings.guidance if request.guidance is None else request.guidance
        held = settings.frame_guidance if request.frame_guidance is None else request.frame_guidance
        for name, value in (("guidance", guidance), ("frame_guidance", held)):
            if not 0 <= value <= 100:
                raise RequestError(f"{name} must lie between 0 and 100; got {value:g}")
        low, high = settings.guidance_interval if request.guidance_interval is None else request.guidance_interval
        if not 0 <= low <= high <= 1:
            raise RequestError(
                f"guidance_interval must be two rising noise levels from 0 to 1; got {low:g} and {high:g}"
            )
        rescale = settings.guidance_rescale if request.guidance_rescale is None else request.guidance_rescale
        if not 0 <= rescale <= 1:
            raise RequestError(f"guidance_rescale must lie between 0 and 1; got {rescale:g}")
        if not 0 <= request.seed < 2**63:
            raise RequestError(f"seed must be a whole number from 0 to 2^63 - 1; got {request.seed}")
        seconds = settings.seconds if request.seconds is None else request.seconds
        if mode.still:
            seconds = None
        elif mode.free:
            seconds = request.seconds if mode.timed else None
        else:
            seconds = self.frames_for(size, seconds, fps) / fps
        return replace(
            request,
            size=size,
            seconds=seconds,
            fps=None if mode.still else fps,
            steps=steps,
            guidance=guidance,
            frame_guidance=held,
            guidance_interval=(low, high),
            guidance_rescale=rescale,
            sampler=sampler,
            strength=mode.strength if request.strength is None else request.strength,
            side=SIDES[0] if "side" in mode.reads and request.side is None else request.side,
            hashes=hashed(request, mode, self.vae),
            model_hash=self.hash,
            made_with=self.made_with,
        )

    @property
    def made_with(self) -> str:
        """What moves a clip's last bits, beside its request and the weights."""
        net = self.transformer
        gpu = torch.cuda.get_device_name(net.device) if net.device.type == "cuda" else None
        where = gpu or f"{torch.backends.cpu.get_cpu_capability()} x {torch.get_num_threads()}"
        kind = str(net.dtype).removeprefix("torch.")
        portions = ", one look at a time" if self.sparing else ""
        return f"torch {torch.__version__}, {where}, {kind}, attention {net.attention_backend}{portions}"

    @property
    def portion(self) -> int:
        """How many latent time steps are decoded at a time."""
        return 1 if self.sparing else 4

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
    def generate(
        self,
        requests: list[Request],
        progress: Progress | None = None,
        watch: Watch | None = None,
        together: int = 1,
    ) -> Iterator[Dream]:
        """Make the clips of some requests; up to `together` neighbours of any size are dreamed as one pack, which is
        faster. On one thread each is the same to the last bit in any company.

        `watch` is shown, every few steps, what is being dreamed. Yields a Dream a request, in order; decode it with
        `frames` or `pixels`. Raises RequestError before anything is made.
        """
        resolved = [self.resolve(request) for request in requests]
        canvases = [self.paint(request) for request in resolved]
        windows = [self.window_for(request, canvas) for request, canvas in zip(resolved, canvases, strict=True)]
        longest = [max(self.trained_for(request), default=1) for request in resolved]
        jobs = [Job(*job) for job in zip(range(len(resolved)), resolved, canvases, windows, longest, strict=True)]
        packs, done = packed(jobs, together), 0
        total = sum(jobs[0].looks for jobs in packs)
        for jobs in packs:

            def heading(step: int, clean: list[Tensor], jobs=jobs) -> None:
                if watch and step % WATCHED == 0:
                    for job, latents in zip(jobs, clean, strict=True):
                        begin = max(0, [*job.canvas.denoised_frames, True].index(True) - 1)
                        watch(job.number, self.vae.linear_preview(latents[None, :, begin : begin + WATCHED_STEPS])[0])

            found = [job.canvas.clean_latents for job in jobs]
            for step, latest in enumerate(self.dream_jobs(jobs, heading)):
                found = latest
                if progress and step < jobs[0].looks:
                    progress(done + step + 1, total)
            done += jobs[0].looks
            for job, latents in zip(jobs, found, strict=True):
                yield Dream(job.request, latents, circle=job.canvas.periodic)

    def dream_jobs(self, jobs: list[Job], heading: StepCallback) -> Iterator[list[Tensor]]:
        """Dream one job, in windows if it needs some, or several as one pack; yield their latents after each step."""
        if not jobs[0].whole:
            yield from self.dream_windows(jobs[0], heading)
            return
        canvases, requests, noise = zip(*((job.canvas, job.request, job.noise()) for job in jobs), strict=True)
        yield from self.dream(canvases, requests, [0] * len(jobs), noise, heading)

    def dream_windows(self, job: Job, heading: StepCallback) -> Iterator[list[Tensor]]:
        """Dream a long clip, or a circle; yield its latents after each step, those of a circle at last turned to where
        it is best cut open.
        """
        request, canvas, (steps, H, W) = job.request, job.canvas, job.canvas.denoise_mask.shape
        noise = job.noise(steps if canvas.periodic else 0)
        heard: dict[tuple[str, ...], TextEmbeddings] = {}

        def look(part: Canvas, start: int, stretch: Tensor) -> VelocityFn:
            return self.looking([part], [request], [start], [stretch], heard)

        first, rest = canvas.crop(0, job.window), canvas
        if beginning(canvas, job.window):
            for (found,) in self.dream([first], [request], [0], [noise[:, : job.window]], heading):
                yield [torch.cat([found, canvas.clean_latents[:, job.window :]], 1)]
            rest = canvas.keep(found, 0)
        windows = Windows(look, self.vae, rest, job.window, noise[:, -steps:], canvas)
        times = [self.times(request, blank((1, job.window, H, W), canvas.fps))]
        found = [canvas.clean_latents]
        for found in sample(windows, [rest], [noise[:, :steps]], times, request.sampler or "", heading):
            yield found
        if canvas.periodic:
            yield [cut_open(found[0], self.vae)]

    def trained_for(self, request: Request) -> list[int]:
        """List how many time steps the clips of training have, at a request's size."""
        size = request.size or self.settings.size
        formats = [(frames, y, x) for x, y, frames in self.settings.formats if (x, y) == size and frames > 1]
        return sorted(self.vae.latent_shape(*format)[0] for format in formats)

    def window_for(self, request: Request, canvas: Canvas) -> int:
        """Return how many time steps are dreamed at once; raises RequestError for a clip that is too short."""
        size = request.size or self.settings.size
        if canvas.latent_frames == 1 and not canvas.periodic:
            return 1
        trained = self.trained_for(request)
        before = 1 if canvas.periodic else 0  # a circle's windows begin with a picture of what is before them
        try:
            return window_of(canvas.latent_frames + before, trained)
        except ValueError:
            fps, first = request.fps or self.settings.fps, 0 if canvas.periodic else self.vae.stride[0] - 1
            seconds, least = (
                (steps * self.vae.stride[0] - first) / fps for steps in (canvas.latent_frames, min(trained) - before)
            )
            raise RequestError(
                f"a clip must last at least {least:.3g} seconds at {size[0]}x{size[1]}; got {seconds:.3g}"
            ) from None

    def dream(
        self,
        canvases: Sequence[Canvas],
        requests: Sequence[Request],
        starts: Sequence[int],
        noise: Sequence[Tensor],
        heading: StepCallback | None = None,
    ) -> Iterator[list[Tensor]]:
        """Dream canvases as one pack; yield their latents after each step.

        Each canvas stands at time step `starts[i]` of its request's clip. Requests are resolved, and have the first
        one's steps and method.
        """
        times = [self.times(requests[0], canvas) for canvas in canvases]
        velocity = self.looking(canvases, requests, starts, noise)
        return sample(velocity, canvases, noise, times, requests[0].sampler or "", heading)

    def times(self, request: Request, canvas: Canvas) -> Tensor:
        """Return the times (steps + 1,) at which a sampler looks at a canvas."""
        assert request.steps is not None, "the request is resolved"
        tokens = math.prod(grid_of(canvas.denoise_mask.shape, self.transformer.dit_config.patch))
        return sigma_schedule(self.scheduler, request.steps, tokens)

    def looking(
        self,
        canvases: Sequence[Canvas],
        requests: Sequence[Request],
        starts: Sequence[int],
        noise: Sequence[Tensor],
        heard: dict[tuple[str, ...], TextEmbeddings] | None = None,
    ) -> VelocityFn:
        """Return the guided velocity of what stands on canvases: `dream` says what its arguments are. What was `heard`
        before is not read again.
        """
        heard = {} if heard is None else heard
        patch = self.transformer.dit_config.patch
        scripts = [Script.of(*one) for one in zip(requests, canvases, starts, strict=True)]
        prompts = [sorted({*script.prompts, script.negative}) for script in scripts]
        for own in map(tuple, prompts):  # each clip's as if it were alone
            if own not in heard:
                heard[own] = encode_prompts(list(own), self.tokenizer, self.text_encoder)
        words = [heard[tuple(own)] for own in prompts]

        def seen(looks: list[tuple[int, Look]]) -> Iterator[Tensor]:
            clips = [(clip, [look.prompt for _, look in own]) for clip, own in groupby(looks, itemgetter(0))]
            batch = pack(
                [look.x for _, look in looks],
                [look.level for _, look in looks],
                [canvases[clip].fps for clip, _ in looks],
                patch,
                [len(own) for _, own in clips],
            )
            said = [words[clip].repeat([prompts[clip].index(prompt) for prompt in own]) for clip, own in clips]
            features, pooled = (
                torch.cat([own.token_embeddings for own in said]),
                torch.cat([own.pooled for own in said]),
            )
            counts = tuple(count for own in said for count in own.token_counts)
            yield from unpack(self.transformer(batch, features, pooled, counts), batch.shapes, patch)

        def velocity(xs: list[Tensor], levels: list[Tensor]) -> list[Tensor]:
            plans = [plan(*one) for one in zip(scripts, requests, canvases, noise, xs, levels, strict=True)]
            looks = [(clip, look) for clip, (looks, _) in enumerate(plans) for look in looks]
            found = (v for some in ([look] for look in looks) for v in seen(some)) if self.sparing else seen(looks)
            return [join([next(found) for _ in looks]) for looks, join in plans]

        return velocity

    def paint(self, request: Request) -> Canvas:
        """Return the canvas of a resolved request. Raises RequestError and MediaError."""
        shape, fps = self.shape_of(request)
        ask = ask_of(request, self.vae, self.transformer.dit_config.patch, shape, fps)
        return MODES[request.mode].paint(ask).to(self.device)

    def shape_of(self, request: Request) -> tuple[tuple[int, int, int, int], float]:
        """Return (C, T, H, W) of the latents that a resolved request asks for, and their frames a second."""
        columns, rows = request.size or self.settings.size
        fps = request.fps or self.settings.fps
        seconds = self.settings.seconds if request.seconds is None else request.seconds
        time = self.vae.stride[0]
        frames = 1 if MODES[request.mode].still else 1 + time * max(1, round((seconds * fps - 1) / time))
        return (self.vae.channels, *self.vae.latent_shape(frames, rows, columns)), fps

    @torch.no_grad()
    def frames(self, dream: Dream, steps: int | None = None) -> Iterator[Tensor]:
        """Show a dream as pieces (3, f, Y, X) in [-1, 1], `steps` latent time steps at a time, in constant memory."""
        past, steps = None, steps or self.portion
        if dream.circle:  # once around unseen, so that the first frame follows the last
            pixels = torch.zeros(0)
            for piece in dream.latents.split(steps, dim=1):
                pixels, past = self.vae.decode_piece(piece[None], past)
            before, past = self.vae.encode(pixels[:, :, -1:])[0], None
            for piece in (before, *dream.latents.split(steps, dim=1)):
                _, past = self.vae.decode_piece(piece[None], past)
        for piece in dream.latents.split(steps, dim=1):
            pixels, past = self.vae.decode_piece(piece[None], past)
            yield pixels[0]

    def pixels(self, dream: Dream) -> Tensor:
        """Show a dream as one clip (3, F, Y, X) in [-1, 1]."""
        return torch.cat(list(self.frames(dream)), dim=1)


def hash_of_model(folder: Path) -> str:
    """Return the hash of a model folder's weights and settings."""
    parts = (path for part in ("transformer", "vae", TEXT_FILES[0]) for path in weights_in(folder / part))
    return hash_of_file(folder / SETTINGS, *parts)


def mode_of(request: Request) -> Mode:
    """Return a request's row of the MODES table; raises RequestError for an unknown mode."""
    if request.mode not in MODES:
        raise RequestError(f"mode must be one of {', '.join(MODES)}; got {request.mode!r}")
    return MODES[request.mode]
