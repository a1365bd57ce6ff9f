"""The flags of a Request: which there are, and the requests that parsed flags stand for."""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

from app.policy.policy import add_policy_flags
from app.provenance.signing import UNSIGNED_HELP
from app.registry import check_upsampler_choice
from captioning.camera import CAMERA_AXES, CAMERA_MOVES
from dit.modes import MODES, Mode
from dit.request import ALL_SAMPLERS, CORNERS, NO_UPSAMPLER, RENAMED, SIDES, Request, RequestError, parse_size
from dit.storyboard import read_storyboard

OUTPUT_HELP = (
    "where to write it: .mp4, .webm, .gif or .mkv, .png for an image; several clips are numbered before the suffix"
)
UPSAMPLE_HELP = (
    "who expands a short prompt: none (default), auto, the folder of an upsampler, a language model of "
    "transformers, or ADDRESS#MODEL of an OpenAI-compatible endpoint"
)
CAMERA_HELP = (
    f"how the camera moves, in place of what the prompt says: {', '.join(CAMERA_MOVES)}, or several joined by +, or "
    f"six numbers for {', '.join(CAMERA_AXES)}; only for models that were trained with it"
)

# The flags of the fields that only some modes read.
MODE_FLAGS: dict[str, dict] = {
    "image": {"metavar": "FILE", "help": "the image of the first frame"},
    "clip": {"metavar": "FILE", "help": "the source clip"},
    "other": {"metavar": "FILE", "help": "the clip to arrive at"},
    "keyframe": {
        "dest": "keyframes",
        "nargs": 2,
        "action": "append",
        "metavar": ("SECONDS", "FILE"),
        "help": "an image and its time; may be given several times",
    },
    "side": {"choices": SIDES, "help": "on which side of the clip to extend it (default after)"},
    "strength": {
        "type": float,
        "help": "denoising strength, from 0, which returns the clip, to 1, which ignores it (default 0.6; of a remix "
        "0.95)",
    },
    "window": {"type": float, "nargs": 2, "metavar": ("FROM", "TO"), "help": "a time window of the clip, in seconds"},
    "box": {
        "type": int,
        "nargs": 4,
        "metavar": ("LEFT", "TOP", "RIGHT", "BOTTOM"),
        "help": "a region of the frame, in pixels from its left and top",
    },
    "mask": {"metavar": "FILE", "help": "an image or clip, white where to generate"},
    "moments": {
        "metavar": "FILE",
        "help": "a storyboard, .yaml or .json: a prompt schedule of moments, each with at, prompt, image, clip",
    },
}

FIELDS = (
    *("mode", "upsample", "upsampled_prompt", "seconds", "fps", "steps", "guidance", "frame_guidance"),
    *("guidance_interval", "guidance_rescale", "negative_prompt", "sampler", "camera", "watermark", "model"),
    *("guidance_2", "flow_shift", "loras"),
    *(settings.get("dest", flag) for flag, settings in MODE_FLAGS.items()),
)


def add_flag(command: argparse.ArgumentParser, flag: str, former: str | None = None, **settings) -> None:
    """Add a flag, and its `former` name of version 0.1, which --help leaves out."""
    command.add_argument(f"--{flag}", **settings)
    if former:
        settings.setdefault("dest", flag.replace("-", "_"))
        settings |= {"help": argparse.SUPPRESS, "default": argparse.SUPPRESS}
        command.add_argument(f"--{former}", **settings)


def _add_field(command: argparse.ArgumentParser, flag: str, **settings) -> None:
    """Add the flag of a Request's field, and the field's former name."""
    field = settings.get("dest", flag.replace("-", "_"))
    former = next((old for old, new in RENAMED.items() if new == field), None)
    add_flag(command, flag, "picture" if former == "pictures" else former, **settings)


def add_output_flags(command: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the output file and what one call may repeat: seeds and sizes."""
    command.add_argument("-o", "--output", type=Path, required=required, metavar="FILE", help=OUTPUT_HELP)
    command.add_argument(
        "--seed", type=int, nargs="+", help="random seed of the noise (default 0); several make several clips"
    )
    command.add_argument(
        "--variations",
        type=int,
        default=1,
        metavar="N",
        help="make N clips of each, with the seed and the N - 1 after it",
    )
    command.add_argument(
        "--size", nargs="+", metavar="COLUMNSxROWS", help="pixels, such as 64x64; several make several clips"
    )


def add_request_flags(command: argparse.ArgumentParser, mode: Mode | None = None) -> None:
    """Add the flags that a mode reads, or those of all modes. A flag that is left out keeps the model's default."""
    if mode is None:
        command.add_argument(
            "--mode", choices=list(MODES), metavar="MODE", help="see longtake modes (default text-to-video)"
        )
    for flag, settings in MODE_FLAGS.items():
        if mode is None or settings.get("dest", flag) in mode.reads:
            _add_field(command, flag, **settings)
    if mode is None or "moments" not in mode.needs:
        command.add_argument("--upsample", metavar="NAME", help=UPSAMPLE_HELP)
        _add_field(command, "upsampled-prompt", metavar="TEXT", help="what the model reads in place of the prompt")
    if mode is None or (mode.timed and not mode.still):
        command.add_argument("--seconds", type=float, help="duration")
    if mode is None or not mode.still:
        command.add_argument("--fps", type=float, help="frames per second")
    command.add_argument("--steps", type=int, help="sampling steps; more is slower and finer")
    command.add_argument(
        "--guidance", type=float, help="classifier-free guidance scale: how closely to follow the prompt; 1 is none"
    )
    if mode is None or mode.needs:
        command.add_argument(
            "--frame-guidance",
            type=float,
            help="guidance scale of the given frames: how closely to follow them; 1 is none",
        )
    _add_field(
        command,
        "guidance-interval",
        type=float,
        nargs=2,
        metavar=("FROM", "TO"),
        help="guide only between these noise levels, 0 to 1",
    )
    _add_field(
        command,
        "guidance-rescale",
        type=float,
        help="share of the contrast added by guidance that is taken back, 0 to 1",
    )
    _add_field(command, "negative-prompt", metavar="TEXT", help="what to guide away from, in place of an empty prompt")
    _add_field(
        command,
        "sampler",
        choices=ALL_SAMPLERS,
        help="the solver of the sampling steps; scheduler: that of another maker's model folder",
    )
    command.add_argument(
        "--guidance-2", type=float, help="second guidance scale, of other makers' models that have one"
    )
    command.add_argument("--flow-shift", type=float, help="shift of the noise levels, of other makers' models")
    command.add_argument(
        "--lora",
        dest="loras",
        nargs=2,
        action="append",
        metavar=("FILE", "WEIGHT"),
        help="a LoRA of another maker's model, safetensors, and its weight; may be given several times",
    )
    if mode is None or not mode.still:
        command.add_argument("--camera", metavar="MOVE", help=CAMERA_HELP)
    _add_field(command, "watermark", choices=CORNERS, help="show a small watermark, AI, in this corner")
    command.add_argument("--unsigned", action="store_true", help=UNSIGNED_HELP)
    command.add_argument("--model", help="a shipped model or a model folder (default: the newest shipped one)")
    command.add_argument(
        "--keep-latents", action="store_true", help="also write each clip's latents, to extend or edit it"
    )
    command.add_argument(
        "--preview", type=Path, metavar="FILE", help="a png that shows the clip as it is sampled, every few steps"
    )
    command.add_argument("--sheet", type=Path, metavar="FILE", help="also write a contact sheet of all clips, a png")
    add_policy_flags(command)


def read_fields(args: argparse.Namespace) -> dict:
    """Return the fields of a request that were set by flags, or by the storyboard that one of them names."""
    found = {name: value for name in FIELDS if (value := getattr(args, name, None)) is not None}
    if "keyframes" in found:
        rule = "a keyframe has seconds and a file"
        found["keyframes"] = [(_parse_number(at, rule), path) for at, path in found["keyframes"]]
    if "loras" in found:
        found["loras"] = [
            (path, _parse_number(weight, "a LoRA has a file and a weight")) for path, weight in found["loras"]
        ]
    if "upsampled_prompt" in found:  # written by hand, not by an upsampler
        if not found["upsampled_prompt"].strip():
            raise RequestError("upsampled_prompt must have text; got none, so give --upsample none to undo it")
        if found.setdefault("upsample", NO_UPSAMPLER) != NO_UPSAMPLER:
            both = f"{found['upsampled_prompt']!r} and {found['upsample']!r}"
            raise RequestError(f"give --upsampled-prompt or --upsample; got both, {both}")
    if "moments" in found:
        found = read_storyboard(found["moments"]) | {name: value for name, value in found.items() if name != "moments"}
    return found


def _parse_number(text: str, rule: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RequestError(f"{rule}; got {text!r} for the number") from None


def read_requests(args: argparse.Namespace) -> list[Request]:
    """Return the requests of a command: each prompt with each size and each seed."""
    base = Request().altered(**read_fields(args))
    check_upsampler_choice(base, (getattr(args, "upsample", None),))  # a storyboard may name one
    prompts, sizes = args.prompt or [base.prompt], [parse_size(size) for size in args.size or ()] or [base.size]
    if args.variations < 1:
        raise RequestError(f"variations must be at least 1; got {args.variations}")
    seeds = [seed + more for seed in args.seed or [base.seed] for more in range(args.variations)]
    return [base.altered(prompt=prompt, seed=seed, size=size) for prompt, seed, size in product(prompts, seeds, sizes)]
