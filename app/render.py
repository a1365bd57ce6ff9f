"""From requests to files: load the model once, dream, decode as it is written, put the request inside, and sign."""

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
from app.registry import DEFAULT_MODEL, model_folder, upsampler_named
from captioning.text_encoder import shorten_to_limit
from captioning.upsampler import load_upsampler
from dit.inputs import keep_latents
from dit.pipeline import Dream, Pipeline, Progress, mode_of
from dit.request import KEY, Request, RequestError
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
    """Make clips and write each to its file as soon as it is done, with `latents` these too; yields the paths written.

    `preview` is written over and over with a rough picture of what is being dreamed.

    All requests share one model. Everything that can be refused is refused before the first is made: raises
    RequestError, PolicyError, MediaError or WeightsError, ProvenanceError where files cannot be signed, and what
    `upsampled` raises; DiskError when the disk fills up. What is written of a prompt is held to the policy as well, and
    what is made to the classifier.
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
        check_latents(request, latents)
    content_policy.check_requests(*requests)
    names = {request.model for request in requests}
    if len(names) > 1:
        raise RequestError(f"clips made together must share one model; got {', '.join(sorted(map(str, names)))}")
    pipeline = load(requests[0])
    requests = upsampled(requests, pipeline)
    content_policy.check_requests(*requests)
    seen = []
    with ExitStack() as stack:
        bars: list[tqdm] = []

        def progress(done: int, total: int) -> None:
            if not bars:  # not before there is progress to show
                bars.append(stack.enter_context(tqdm(desc="dreaming", total=total, unit="step", file=sys.stderr)))
            bars[0].update(done - bars[0].n)

        def show(number: int, view: torch.Tensor) -> None:
            if preview:
                write_sheet(preview, [view.cpu()], [replace(requests[number], model_hash=pipeline.hash)])

        for dream, output in zip(
            pipeline.generate(requests, progress, show if preview else None), outputs, strict=True
        ):
            write(pipeline, dream, output, content_policy=content_policy)
            if sheet:
                seen.append(dream)
            yield output
            if latents:
                yield keep_latents(output, dream.latents, pipeline.vae)
    if sheet:
        clips = [pipeline.pixels(dream).cpu() for dream in seen]
        write_sheet(sheet, clips, [dream.request for dream in seen], outputs)
        yield sheet


def check_latents(request: Request, kept: bool) -> None:
    """Raise RequestError where latents that have no beginning would be kept."""
    if kept and request.mode == "loop":
        raise RequestError("latents of a loop cannot be kept: a circle has no beginning; leave out --keep-latents")


def upsampled(requests: list[Request], pipeline: Pipeline) -> list[Request]:
    """Let prompts be written out where that is asked for and not yet done, in as many whole sentences as the model can
    read; say on stderr what is read in their place.

    Raises RequestError or ValueError for what is no upsampler, or for what the model refuses whatever is written, and
    AnswerError where an upsampler elsewhere has no answer.
    """
    named = [None if request.written else upsampler_named(request.upsample) for request in requests]
    for request, name in zip(requests, named, strict=True):
        if name and not request.prompt.strip():
            raise RequestError("upsample writes out a prompt; got moments or nothing, so leave it out")
        if name:
            pipeline.resolve(replace(request, upsample=None))
    writers = {name: load_upsampler(name) for name in dict.fromkeys(named) if name}
    found, texts = [], dict[tuple, str]()
    for request, name in zip(requests, named, strict=True):
        prompt = request.prompt.strip()
        if name:
            asked = name, prompt, request.seed, mode_of(request).still
            if asked not in texts:
                texts[asked] = shorten_to_limit(pipeline.tokenizer, writers[name].upsample(*asked[1:])) or prompt
            request = replace(request, written=texts[asked])
        if request.written:
            read = "it was typed" if request.written == prompt else f"{request.written!r}"
            print(f"longtake: {request.prompt!r} is read as {read}", file=sys.stderr)
        found.append(request)
    return found


def load(request: Request) -> Pipeline:
    """Load the model that a request names, on the GPU where there is one; says so on stderr where other weights made
    the clip.
    """
    pipeline = Pipeline.from_pretrained(model_folder(request.model))
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


def write(
    pipeline: Pipeline, dream: Dream, output: Path, progress: Progress | None = None, content_policy: ContentPolicy = UNRESTRICTED
) -> None:
    """Decode a dream piece by piece into a file that carries its request and is signed, and appears when it is whole;
    `progress` hears of latents decoded.

    Raises PolicyError, and leaves no file, where the content_policy sees what may not be kept.
    """
    metadata = {KEY: dream.request.to_json()}

    def told() -> Iterator[torch.Tensor]:
        done, total = 0, dream.latents.shape[1]
        for piece in pipeline.frames(dream):
            yield piece.cpu()
            done = min(total, done + pipeline.portion)
            if progress:
                progress(done, total)

    looked = content_policy.check_clip(told(), dream.request.fps or pipeline.settings.fps)
    frames = add_watermark(looked, dream.request.mark) if dream.request.mark else looked
    with signed_output(output, _named(dream.request)) as draft:
        if mode_of(dream.request).still:
            write_image(draft, next(frames), metadata=metadata)
        else:
            write_video(draft, frames, dream.request.fps or pipeline.settings.fps, metadata=metadata)


def write_sheet(path: Path, views: list[torch.Tensor], requests: list[Request], clips: Sequence[Path] = ()) -> None:
    """Write a signed picture of clips (3, F, Y, X), with their prompts; `clips` are the files where these are shown."""
    with signed_output(path, _named(requests[0]), clips) as draft:
        write_image(draft, contact_sheet(views, captions=[request.prompt for request in requests]))


def _named(request: Request) -> Request:
    """Return a request that names its model also where it is the default."""
    return replace(request, model=request.model or DEFAULT_MODEL)


def request_in(path: Path) -> Request:
    """Read the request that a file carries; raises MediaError for what cannot be read and RequestError for what carries
    none.
    """
    found = read_metadata(path).get(KEY)
    if found is None:
        raise RequestError(f"a file to make again must carry its request, as longtake writes it; {path} carries none")
    return Request.from_json(found)
