"""The pipeline: a request becomes latents, and latents become pixels."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from captioning.learned_words import LearnedWords, read_learned_words
from captioning.text_encoder import load_text_encoder, tokenize
from dit.batching import SamplingJob, make_packs
from dit.camera import check_camera, reads_camera
from dit.canvas import Canvas
from dit.denoiser import Denoiser, Networks, Segment
from dit.flow import sigma_schedule
from dit.inputs import hash_inputs, mode_inputs
from dit.model import DiT
from dit.modes import MODES, Mode, mode_of
from dit.notes import size_of_inputs
from dit.packing import grid_of
from dit.request import NO_UPSAMPLER, OTHER_MODELS, SAMPLERS, SIDES, Request, RequestError, check_lengths, check_values
from dit.sampler import StepCallback, sample
from dit.samples import Sample, trim_frames
from dit.settings import SETTINGS, Settings, hash_of_model, read_settings
from dit.windows import longest_window, samples_first_window_alone
from vae.model import VideoVAE
from vae.weights import load_strictly, read_json

ProgressCallback = Callable[[int, int], None]  # steps done, all steps
PreviewCallback = Callable[[int, Tensor], None]  # a request's index, and a preview (3, F, Y, X) of its denoised latents
PREVIEW_EVERY_STEPS = 5
MAX_PREVIEW_LATENT_FRAMES = 32


class Pipeline(DiffusionPipeline):
    """A model folder in diffusers' layout, with its settings in `longtake.json`."""

    def __init__(self, transformer, vae, text_encoder, tokenizer, scheduler, settings: Settings | None = None):
        super().__init__()
        self.register_modules(
            transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler
        )
        self.settings = settings or Settings()
        self.hash: str | None = None
        self.learned_words: LearnedWords | None = None
        self.low_memory = False  # one forward pass and one latent frame at a time, which is slower

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs) -> Pipeline:
        """Load a model folder strictly; raises WeightsError naming what is missing, extra, misshapen or damaged."""
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
        pipeline.hash, pipeline.learned_words = hash_of_model(folder), read_learned_words(folder)
        return pipeline

    def save_pretrained(self, folder: str | Path, **kwargs) -> None:
        """Write a model folder that `from_pretrained` loads."""
        super().save_pretrained(folder, safe_serialization=True, **kwargs)
        (Path(folder) / SETTINGS).write_text(json.dumps(asdict(self.settings), indent=2))
        if self.learned_words:
            self.learned_words.save(Path(folder))

    def resolve(self, request: Request) -> Request:
        """Check a request against this model and fill in its defaults, so that it makes the same clip again.

        Raises RequestError for what the model cannot do, ValueError for a prompt over the token limit, and MediaError
        for a file that cannot be read.
        """
        check_lengths(request)
        check_camera(request, reads_camera(self.transformer))
        mode, settings = mode_of(request), self.settings
        if not request.prompt.strip() and not (request.moments and "moments" in mode.reads):
            raise RequestError("a prompt must say something; got none, so describe the clip in a sentence")
        if request.prompt.strip() and request.upsample not in (None, NO_UPSAMPLER) and not request.upsampled_prompt:
            raise RequestError(
                f"upsample needs upsampled_prompt; got only {request.upsample!r}, so let app.render write it"
            )
        prompts = [request.effective_prompt, request.negative_prompt or "", *(m.prompt for m in request.moments or ())]
        self.check_prompts(prompts)
        for field in mode.needs:
            if not getattr(request, field):
                flag = "keyframe" if field == "keyframes" else field
                raise RequestError(f"{request.mode} needs {field}; got none, so give --{flag}")
        check_values(request)  # before any file is opened
        size = request.size or size_of_inputs(request, mode, settings, self.vae.stride[0])
        check_values(replace(request, size=size))
        if request.moments and "moments" in mode.reads and request.prompt.strip():
            raise RequestError("moments have prompts of their own; got another prompt, so leave it out")
        self.check_size(size, mode)
        sampler = request.sampler or settings.sampler
        if sampler not in self.samplers:
            raise RequestError(f"sampler must be one of {', '.join(self.samplers)}; got {sampler!r}")
        self.check_special_fields(request)
        fps = self.checked_fps(request)
        steps = settings.steps if request.steps is None else request.steps
        if not 1 <= steps <= 1000:
            raise RequestError(f"steps must lie between 1 and 1000; got {steps}")
        guidance = settings.guidance if request.guidance is None else request.guidance
        frame_guidance = settings.frame_guidance if request.frame_guidance is None else request.frame_guidance
        for name, value in (("guidance", guidance), ("frame_guidance", frame_guidance)):
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
        seconds = self.default_seconds(size) if request.seconds is None else request.seconds
        if mode.still:
            seconds = None
        elif mode.any_length:
            seconds = request.seconds if mode.timed else None
        else:
            seconds = self.trained_frame_count(size, seconds, fps) / fps
        return replace(
            request,
            size=size,
            seconds=seconds,
            fps=None if mode.still else fps,
            steps=steps,
            guidance=guidance,
            frame_guidance=frame_guidance,
            guidance_interval=(low, high),
            guidance_rescale=rescale,
            sampler=sampler,
            strength=mode.strength if request.strength is None else request.strength,
            side=SIDES[0] if "side" in mode.reads and request.side is None else request.side,
            hashes=hash_inputs(request, mode, self.vae),
            model_hash=self.hash,
            made_with=self.made_with,
        )

    @property
    def samplers(self) -> tuple[str, ...]:
        """The samplers that this model works with."""
        return SAMPLERS

    @property
    def patch(self) -> tuple[int, int, int]:
        """The latents (frames, rows, columns) of one token."""
        return self.transformer.dit_config.patch

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raise ValueError for a prompt over the token limit."""
        tokenize(self.tokenizer, list(prompts))

    def check_size(self, size: tuple[int, int], mode: Mode) -> None:
        """Raise RequestError for a size (columns, rows) that the model was not trained for."""
        known = {(x, y): f"{x}x{y}" for x, y, frames in self.settings.formats if mode.still == (frames == 1)}
        if size not in known:
            listed = ", ".join(known.values())
            raise RequestError(f"size must be one this model was trained for: {listed}; got {size[0]}x{size[1]}")

    def check_special_fields(self, request: Request) -> None:
        """Raise RequestError for a field that only other models read."""
        for name in OTHER_MODELS:
            if getattr(request, name) is not None:
                raise RequestError(f"{name} must be left out for this model, which has no such thing")

    def checked_fps(self, request: Request) -> float:
        """Return the frame rate of a request; raises RequestError for one that the model was not trained for."""
        trained = self.settings.fps
        if request.fps not in (None, trained):
            raise RequestError(f"fps must be what this model was trained for, {trained:g}; got {request.fps:g}")
        return trained

    @property
    def made_with(self) -> str:
        """What decides a clip's last bits, apart from its request and the weights: software, hardware and settings."""
        net = self.transformer
        gpu = torch.cuda.get_device_name(net.device) if net.device.type == "cuda" else None
        device = gpu or f"{torch.backends.cpu.get_cpu_capability()} x {torch.get_num_threads()}"
        dtype = str(net.dtype).removeprefix("torch.")
        memory = ", low memory" if self.low_memory else ""
        return f"torch {torch.__version__}, {device}, {dtype}, attention {net.attention_backend}{memory}"

    @property
    def networks(self) -> Networks:
        """The parts that denoise."""
        return Networks(self.transformer, self.vae, self.tokenizer, self.text_encoder, self.low_memory)

    @property
    def decode_latent_frames(self) -> int:
        """Number of latent frames that are decoded at a time."""
        return 1 if self.low_memory else 4

    def default_seconds(self, size: tuple[int, int]) -> float:
        """Return the trained duration at a size that is nearest to the default one."""
        settings = self.settings
        trained = [frames / settings.fps for x, y, frames in settings.formats if (x, y) == size and frames > 1]
        return min(trained, key=lambda seconds: abs(seconds - settings.seconds), default=settings.seconds)

    def trained_frame_count(self, size: tuple[int, int], seconds: float, fps: float) -> int:
        """Return the trained number of frames nearest to `seconds` at a size.

        Raises RequestError if the nearest is a latent frame or more away.
        """
        trained = sorted(
            frames for columns, rows, frames in self.settings.formats if (columns, rows) == size and frames > 1
        )
        nearest = min(trained, key=lambda frames: abs(frames / fps - seconds))
        if not math.isfinite(seconds) or abs(nearest / fps - seconds) * fps >= self.vae.stride[0]:
            known = ", ".join(f"{frames / fps:.3g}" for frames in trained)
            raise RequestError(
                f"seconds must be one this model was trained for at {size[0]}x{size[1]}: {known}; got {seconds:g}"
                + ("; the mode long makes longer clips" if seconds > trained[-1] / fps else "")
            )
        return nearest

    @torch.no_grad()
    def generate(
        self,
        requests: list[Request],
        progress: ProgressCallback | None = None,
        preview: PreviewCallback | None = None,
        pack_size: int = 1,
    ) -> Iterator[Sample]:
        """Sample the clips of some requests; yield a Sample for each, in order, to decode with `frames` or `pixels`.

        Up to `pack_size` neighbouring clips, of any sizes, are sampled as one pack, which is faster. On one thread a
        clip is bit-identical in any company. Raises what `resolve` and `paint` raise, before the first is sampled.
        """
        resolved = [self.resolve(request) for request in requests]
        canvases = [self.paint(request) for request in resolved]
        windows = [self.window_length(request, canvas) for request, canvas in zip(resolved, canvases, strict=True)]
        longest = [max(self.trained_lengths(request), default=1) for request in resolved]
        jobs = list(map(SamplingJob, range(len(resolved)), resolved, canvases, windows, longest))
        packs, done = make_packs(jobs, pack_size), 0
        all_steps = sum(jobs[0].steps for jobs in packs)
        for jobs in packs:

            def callback(step: int, denoised: list[Tensor], jobs=jobs) -> None:
                if preview and step % PREVIEW_EVERY_STEPS == 0:
                    for job, latents in zip(jobs, denoised, strict=True):
                        begin = max(0, [*job.canvas.denoised_frames, True].index(True) - 1)
                        shown = latents[None, :, begin : begin + MAX_PREVIEW_LATENT_FRAMES]
                        preview(job.index, self.vae.linear_preview(shown)[0])

            latents = [job.canvas.clean_latents for job in jobs]
            for step, after_step in enumerate(self.sample_pack(jobs, callback), 1):
                latents = after_step
                if progress and step <= jobs[0].steps:
                    progress(done + step, all_steps)
            done += jobs[0].steps
            for job, clip in zip(jobs, latents, strict=True):
                yield Sample.of(job.request, clip, job.canvas)

    def sample_pack(
        self,
        jobs: Sequence[SamplingJob],
        callback: StepCallback | None = None,
        make_denoiser: Callable[..., Denoiser] = Denoiser,
    ) -> Iterator[list[Tensor]]:
        """Sample clips as one pack, or one clip in windows; yield their latents after each step."""
        if jobs[0].in_one_window:
            segments = [Segment(job.request, job.canvas, job.noise()) for job in jobs]
            yield from self.sample_segments(segments, callback, make_denoiser)
        else:
            (job,) = jobs
            yield from self.sample_in_windows(job, callback, make_denoiser)

    def sample_segments(
        self,
        segments: Sequence[Segment],
        callback: StepCallback | None = None,
        make_denoiser: Callable[..., Denoiser] = Denoiser,
    ) -> Iterator[list[Tensor]]:
        """Sample segments as one pack, with the first one's steps and sampler; yield their latents after each step."""
        request, canvases = segments[0].request, [segment.canvas for segment in segments]
        denoiser, noise = make_denoiser(self.networks, segments), [segment.noise for segment in segments]
        shapes = [canvas.denoise_mask.shape for canvas in canvases]
        return self.run_sampler(denoiser, request, canvases, noise, shapes, callback)

    def run_sampler(
        self,
        denoiser: Denoiser,
        request: Request,
        canvases: Sequence[Canvas],
        noise: Sequence[Tensor],
        shapes: Sequence[Sequence[int]],
        callback: StepCallback | None,
    ) -> Iterator[list[Tensor]]:
        """Sample canvases, of which the model sees (T, H, W) of `shapes` at a time; yield latents after each step."""
        sigmas = [self.sigmas(request, shape) for shape in shapes]
        return sample(denoiser, canvases, noise, sigmas, request.sampler or "", callback)

    def sample_in_windows(
        self, job: SamplingJob, callback: StepCallback | None, make_denoiser: Callable[..., Denoiser] = Denoiser
    ) -> Iterator[list[Tensor]]:
        """Sample a long or periodic clip; yield its latents after each step.

        Periodic latents come once more at the end, rotated to where a cut is seen least.
        """
        request, canvas, window = job.request, job.canvas, job.window
        rest, latents = canvas, canvas.clean_latents
        T, H, W = canvas.denoise_mask.shape
        noise = job.noise(T if canvas.periodic else 0)  # on a periodic canvas, the anchors have noise of their own
        if samples_first_window_alone(canvas, window):
            first = Segment(request, canvas.crop(0, window), noise[:, :window])
            for (latents,) in self.sample_segments([first], callback, make_denoiser):
                yield [torch.cat([latents, canvas.clean_latents[:, window:]], 1)]
            rest = canvas.keep(latents, 0)
        denoiser = make_denoiser(self.networks, [Segment(request, rest, noise[:, -T:])], window, canvas)
        run = self.run_sampler(denoiser, request, [rest], [noise[:, :T]], [(window, H, W)], callback)
        for (latents,) in run:
            yield [latents]
        if canvas.periodic:
            yield [denoiser.cut_loop(latents)]

    def sigmas(self, request: Request, shape: Sequence[int]) -> Tensor:
        """Return the noise levels (steps + 1,) of a resolved request's sampler, for latents (T, H, W)."""
        assert request.steps is not None, "the request is resolved"
        return sigma_schedule(self.scheduler, request.steps, self.token_count(shape))

    def token_count(self, shape: Sequence[int]) -> int:
        """Return the number of tokens of latents (T, H, W)."""
        return math.prod(grid_of(shape, self.patch))

    def trained_lengths(self, request: Request) -> list[int]:
        """Return the lengths of training clips at a request's size, in latent frames, ascending."""
        size = request.size or self.settings.size
        formats = [(frames, y, x) for x, y, frames in self.settings.formats if (x, y) == size and frames > 1]
        return sorted(self.vae.latent_shape(*format)[0] for format in formats)

    def window_length(self, request: Request, canvas: Canvas) -> int:
        """Return the number of latent frames that are sampled at once; raises RequestError for a clip too short."""
        size = request.size or self.settings.size
        if canvas.latent_frames == 1 and not canvas.periodic:
            return 1
        trained = self.trained_lengths(request)
        anchors = 1 if canvas.periodic else 0  # the windows of a loop begin with the frame before them
        try:
            return longest_window(canvas.latent_frames + anchors, trained)
        except ValueError:
            fps, first = request.fps or self.settings.fps, 0 if canvas.periodic else self.vae.stride[0] - 1
            seconds, least = (
                (frames * self.vae.stride[0] - first) / fps for frames in (canvas.latent_frames, min(trained) - anchors)
            )
            raise RequestError(
                f"a clip must last at least {least:.3g} seconds at {size[0]}x{size[1]}; got {seconds:.3g}"
            ) from None

    def paint(self, request: Request) -> Canvas:
        """Return the canvas of a resolved request. Raises RequestError and MediaError."""
        shape, fps = self.latent_shape(request)
        inputs = mode_inputs(request, self.vae, self.patch, shape, fps)
        return MODES[request.mode].paint(inputs).to(self.device)

    def latent_shape(self, request: Request) -> tuple[tuple[int, int, int, int], float]:
        """Return the shape (C, T, H, W) of the latents of a resolved request, and their frames per second."""
        columns, rows = request.size or self.settings.size
        fps = request.fps or self.settings.fps
        seconds = self.settings.seconds if request.seconds is None else request.seconds
        stride = self.vae.stride[0]
        frames = 1 if MODES[request.mode].still else 1 + stride * max(1, round((seconds * fps - 1) / stride))
        return (self.vae.channels, *self.vae.latent_shape(frames, rows, columns)), fps

    @torch.no_grad()
    def frames(self, sample: Sample, latent_frames: int | None = None) -> Iterator[Tensor]:
        """Decode a sample piece by piece, in constant memory; yield frames (3, F, Y, X) in [-1, 1].

        A piece has `latent_frames` latent frames. Those of `trim` are among them.
        """
        state, pieces = None, sample.latents.split(latent_frames or self.decode_latent_frames, dim=1)
        if sample.periodic:  # decode it once before, so that the first frame follows the last
            pixels = torch.zeros(0)
            for piece in pieces:
                pixels, state = self.vae.decode_piece(piece[None], state)
            last, state = self.vae.encode(pixels[:, :, -1:])[0], None
            for piece in (last, *pieces):
                _, state = self.vae.decode_piece(piece[None], state)
        for piece in pieces:
            pixels, state = self.vae.decode_piece(piece[None], state)
            yield pixels[0]

    def pixels(self, sample: Sample) -> Tensor:
        """Decode a sample to the pixels (3, F, Y, X) in [-1, 1] that are shown."""
        return torch.cat(list(trim_frames(self.frames(sample), *sample.trim)), dim=1)
