"""From requests to files: load the model, sample, decode while writing, embed the request, and sign."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from app.formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from app.policy.policy import ContentPolicy
from app.provenance.signing import prepare_signing, signed_output
from app.provenance.watermark import add_watermark
from app.registry import DEFAULT_MODEL, describe_unlearned, model_folder, resolve_upsampler
from captioning.text_encoder import shorten_to_limit
from captioning.upsampler import load_upsampler
from dit.adapters.load import load_model
from dit.inputs import read_soundtrack, save_latents
from dit.modes import mode_of
from dit.notes import SILENT_SUFFIXES, input_notes
from dit.pipeline import Pipeline, ProgressCallback
from dit.request import METADATA_KEY, Request, RequestError
from dit.samples import Sample, trim_frames
from vae.video.pixels import contact_sheet
from vae.video.sandbox import read_metadata
from vae.video.write import check_writable, write_image, write_video

UNRESTRICTED = ContentPolicy()


def render(
    requests: list[Request],
    outputs: list[Path],
    sheet: Path | None = None,
    latents: bool = False,
    preview: Path | None = None,
    content_policy: ContentPolicy = UNRESTRICTED,
) -> Iterator[Path]:
    """Generate clips with one model and write each to its file as soon as it is done; yield the paths written.

    With `latents`, those of each clip are written too. `sheet` gets a contact sheet of all clips, `preview` again and
    again a rough image of the clip that is sampled. The prompts, also the upsampled ones, and the clips must pass the
    policy of `content_policy`.

    What can be refused is refused before the first clip is made: raises RequestError, PolicyError, MediaError,
    WeightsError, ProvenanceError where files cannot be signed, and what `upsample_prompts` raises. Raises DiskError
    when the disk fills up.
    """
    for request, output in zip(requests, outputs, strict=True):
        allowed = IMAGE_SUFFIXES if mode_of(request).still else VIDEO_SUFFIXES
        if output.suffix.lower() not in allowed:
            raise RequestError(f"a {request.mode} file must end in {' or '.join(allowed)}; got {str(output)!r}")
    extras = {"contact sheet": sheet, "preview": preview}
    for name, path in extras.items():
        others = [*outputs, *(other for key, other in extras.items() if key != name)]
        if path and (path.suffix.lower() not in IMAGE_SUFFIXES or path in others):
            raise RequestError(f"a {name} must be a .png of its own; got {str(path)!r}")
    for path in (*outputs, *filter(None, extras.values())):
        check_writable(path)
    prepare_signing()
    for request in requests:
        check_keep_latents(request, latents)
    content_policy.check_requests(*requests)
    names = {request.model for request in requests}
    if len(names) > 1:
        raise RequestError(f"clips made together must share one model; got {', '.join(sorted(map(str, names)))}")
    pipeline = load_pipeline(requests[0])
    requests = upsample_prompts(requests, pipeline)
    content_policy.check_requests(*requests)
    if remark := describe_unlearned(requests):
        print(f"longtake: {remark}", file=sys.stderr)
    samples = []
    with ExitStack() as stack:
        bars: list[tqdm] = []

        def show_progress(step: int, steps: int) -> None:
            if not bars:  # not before there is progress to show
                bars.append(stack.enter_context(tqdm(desc="sampling", total=steps, unit="step", file=sys.stderr)))
            bars[0].update(step - bars[0].n)

        def write_preview(number: int, frames: torch.Tensor) -> None:
            if preview:
                write_sheet(preview, [frames.cpu()], [replace(requests[number], model_hash=pipeline.hash)])

        generated = pipeline.generate(requests, show_progress, write_preview if preview else None)
        for sample, output in zip(generated, outputs, strict=True):
            for note in input_notes(sample.request, mode_of(sample.request), output.suffix):
                tqdm.write(f"longtake: {note}", file=sys.stderr)
            write_sample(pipeline, sample, output, content_policy=content_policy)
            if sheet:
                samples.append(sample)
            yield output
            if latents:
                yield save_latents(output, sample.latents, pipeline.vae, sample.trim)
    if sheet:
        clips = [pipeline.pixels(sample).cpu() for sample in samples]
        write_sheet(sheet, clips, [sample.request for sample in samples], outputs)
        yield sheet


def check_keep_latents(request: Request, keep: bool) -> None:
    """Raise RequestError where the latents of a loop would be kept, which have no first frame."""
    if keep and request.mode == "loop":
        raise RequestError("latents of a loop cannot be kept: a loop has no first frame; leave out --keep-latents")


def upsample_prompts(requests: list[Request], pipeline: Pipeline) -> list[Request]:
    """Fill in `upsampled_prompt` where a request names an upsampler and has none yet; log the results on stderr.

    An upsampled prompt is cut to whole sentences within the text encoder's limit. Raises RequestError or ValueError
    for an unknown upsampler, or for a request that the model refuses whatever its prompt, and AnswerError where a
    remote upsampler does not answer.
    """
    names = [None if request.upsampled_prompt else resolve_upsampler(request.upsample) for request in requests]
    for request, name in zip(requests, names, strict=True):
        if name and not request.prompt.strip():
            raise RequestError("upsample needs a prompt; got moments or nothing, so leave it out")
        if name:
            pipeline.resolve(replace(request, upsample=None))
    upsamplers = {name: load_upsampler(name) for name in dict.fromkeys(names) if name}
    found, texts = [], dict[tuple, str]()
    for request, name in zip(requests, names, strict=True):
        prompt = request.prompt.strip()
        if name:
            key = name, prompt, request.seed, mode_of(request).still
            if key not in texts:
                texts[key] = shorten_to_limit(pipeline.tokenizer, upsamplers[name].upsample(*key[1:])) or prompt
            request = replace(request, upsampled_prompt=texts[key])
        if request.upsampled_prompt:
            read = "it was typed" if request.upsampled_prompt == prompt else f"{request.upsampled_prompt!r}"
            print(f"longtake: {request.prompt!r} is read as {read}", file=sys.stderr)
        found.append(request)
    return found


def load_pipeline(request: Request) -> Pipeline:
    """Load the model that a request names, on the GPU where there is one.

    Warns on stderr where other weights or another stack made the clip of the request.
    """
    pipeline = load_model(model_folder(request.model))
    if request.model_hash and request.model_hash != pipeline.hash:
        print(
            f"longtake: weights {request.model_hash} made the clip; these are {pipeline.hash}, so it will differ",
            file=sys.stderr,
        )
    pipeline = pipeline.to("cuda") if torch.cuda.is_available() else pipeline
    if request.made_with and request.made_with != pipeline.made_with:
        made, here = request.made_with, pipeline.made_with
        print(f"longtake: {made} made the clip; this is {here}, so its last bits may differ", file=sys.stderr)
    return pipeline


def write_sample(
    pipeline: Pipeline,
    sample: Sample,
    output: Path,
    progress: ProgressCallback | None = None,
    content_policy: ContentPolicy = UNRESTRICTED,
) -> None:
    """Decode a sample piece by piece into a signed file that carries its request; it appears when it is whole.

    The sound of its inputs is kept where their frames are, unless the format has none.

    `progress(done, total)` counts decoded latent frames. Raises PolicyError, and leaves no file, where the classifier
    of `content_policy` refuses a frame.
    """
    metadata = {METADATA_KEY: sample.request.to_json()}

    def decode() -> Iterator[torch.Tensor]:
        done, total = 0, sample.latents.shape[1]
        for piece in pipeline.frames(sample):
            yield piece.cpu()
            done = min(total, done + pipeline.decode_latent_frames)
            if progress:
                progress(done, total)

    fps = sample.request.fps or pipeline.settings.fps
    frames = content_policy.check_clip(trim_frames(decode(), *sample.trim), fps)
    if sample.request.watermark:
        frames = add_watermark(frames, sample.request.watermark)
    with signed_output(output, _with_model(sample.request)) as draft:
        if mode_of(sample.request).still:
            write_image(draft, next(frames), metadata=metadata)
        else:
            seconds = (pipeline.vae.frame_count(sample.latents.shape[1]) - sum(sample.trim)) / fps
            sound = read_soundtrack(sample.sound, seconds) if output.suffix.lower() not in SILENT_SUFFIXES else None
            write_video(draft, frames, fps, metadata=metadata, sound=sound)


def write_sheet(path: Path, videos: list[torch.Tensor], requests: list[Request], clips: Sequence[Path] = ()) -> None:
    """Write a signed contact sheet of videos (3, F, Y, X) with their prompts; `clips` are the files they were written
    to, if any.
    """
    with signed_output(path, _with_model(requests[0]), clips) as draft:
        write_image(draft, contact_sheet(videos, captions=[request.prompt for request in requests]))


def _with_model(request: Request) -> Request:
    """Return a request that names its model even where it is the default."""
    return replace(request, model=request.model or DEFAULT_MODEL)


def read_request(path: Path) -> Request:
    """Read the request that a file carries.

    Raises MediaError for a file that cannot be read and RequestError for one without a request.
    """
    found = read_metadata(path).get(METADATA_KEY)
    if found is None:
        raise RequestError(f"a file to make again must carry its request, as longtake writes it; {path} carries none")
    return Request.from_json(found)
