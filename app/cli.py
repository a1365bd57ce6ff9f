"""The command `longtake`: read the words, call the function. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

from app.batch.batch import add_render
from app.commands.caption import add_caption
from app.commands.jobs import add_desk
from app.commands.measure import UPSAMPLE_HELP, add_measure
from app.commands.prepare import add_prepare
from app.commands.serve import add_serve
from app.commands.studio import add_studio
from app.commands.verify import add_sign, add_verify
from app.exit_codes import BAD_INPUT, FAILURE, INTERRUPTED
from app.policy.policy import add_policy_flags, policy_from_flags
from app.provenance.signing import UNSIGNED_HELP, signing_disabled
from app.queue.estimate import add_estimate
from dit.modes import MODES, Mode
from dit.request import CORNERS, NO_UPSAMPLER, RENAMED, SAMPLERS, SIDES, Request, RequestError, parse_size
from dit.storyboard import read_storyboard

TRACEBACK = "LONGTAKE_TRACEBACK"  # set this variable to see where an unexpected failure came from

# Commands of days rather than of people: a module and its function, imported when called; their words are read by tyro.
TRAINING = {
    "world": ("training.dataset", "make_world"),
    "vae": ("training.train_vae", "train"),
    "text": ("training.train_text", "train"),
    "captioner": ("training.train_captioner", "train"),
    "upsampler": ("training.train_upsampler", "train"),
    "dit": ("training.train_dit", "train"),
    "judge": ("training.evaluation.judge", "train"),
    "recipe": ("training.recipe", "train"),
}


def main(words: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for bad input, 1 for a failure, 3 where a part of many failed, 130
    when interrupted.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # two spinning threads on a busy machine are many times slower
    os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "true")
    chosen, rest = parser().parse_known_args(words)
    if chosen.act is _train:
        chosen.rest = rest
    elif rest:
        parser().error(f"{chosen.command} does not know {' '.join(rest)}; see longtake {chosen.command} --help")
    try:
        with signing_disabled() if getattr(chosen, "unsigned", False) else nullcontext():
            return chosen.act(chosen) or 0
    except KeyboardInterrupt as stop:  # a training run says how to go on
        return _say(str(stop) or "interrupted", INTERRUPTED)
    except (ValueError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        return _failed(error, str(error), BAD_INPUT)
    except OSError as error:
        return _failed(error, str(error), FAILURE)
    except Exception as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        return _failed(error, f"{what} (unexpected; set {TRACEBACK}=1 to see where it came from)", FAILURE)


def _failed(error: Exception, sentence: str, code: int) -> int:
    if os.environ.get(TRACEBACK):
        raise error
    return _say(sentence, code)


def _say(sentence: str, code: int) -> int:
    print(f"longtake: {sentence}", file=sys.stderr)
    return code


def parser() -> argparse.ArgumentParser:
    """Return the command line as it is read, and as --help shows it."""
    top = argparse.ArgumentParser(
        "longtake",
        description="Make videos from words, and train the models that do.",
        epilog='Start with: longtake generate "a red ball bounces" -o clip.mp4',
    )
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True, dest="command")

    generate = commands.add_parser("generate", help="make clips or pictures from prompts")
    generate.add_argument("prompt", nargs="+", help="what to show; several prompts make several clips")
    _add_output(generate)
    _add_settings(generate)
    generate.set_defaults(act=_generate)

    again = commands.add_parser("again", help="make a clip anew from its own file, as it was or with changes")
    again.add_argument("file", type=Path, help="a clip or picture that longtake made")
    again.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="where to write it (default: beside FILE, with -again in its name)",
    )
    again.add_argument("--prompt", help="another prompt")
    again.add_argument("--seed", type=int, help="another seed")
    again.add_argument("--size", metavar="COLUMNSxROWS", help="another size")
    _add_settings(again)
    again.set_defaults(act=_again)

    for name, mode in MODES.items():
        command = commands.add_parser(name, help=mode.line, description=mode.line, epilog=f"Example: {mode.example}")
        command.add_argument("prompt", nargs="*", help="what to show; several prompts make several clips")
        _add_output(command)
        _add_settings(command, mode)
        command.set_defaults(act=_generate, mode=name)

    modes = commands.add_parser("modes", help="list every way to make a clip")
    modes.set_defaults(act=_modes)

    add_measure(commands)
    add_estimate(commands, _asked, partial(_add_output, needed=False), _add_settings)
    add_render(commands)
    add_desk(commands)
    add_serve(commands)
    add_studio(commands)
    add_sign(commands)
    add_verify(commands)
    add_caption(commands)
    add_prepare(commands)
    world = commands.add_parser("world", help="render captioned clips of the procedural world", add_help=False)
    world.set_defaults(act=_train, part="world")
    train = commands.add_parser(
        "train",
        help="train a part (vae, text, captioner, upsampler, dit, judge), or all of them in order (recipe)",
        add_help=False,
    )
    parts = [part for part in TRAINING if part != "world"]
    train.add_argument("part", choices=parts, nargs="?", help="then longtake train PART --help explains its presets")
    train.set_defaults(act=_train, usage=train)
    return top


OUTPUT_HELP = (
    "where to write it: .mp4, .webm, .gif or .mkv, .png for a picture; several clips are numbered before the suffix"
)


def _add_output(command: argparse.ArgumentParser, needed: bool = True) -> None:
    """Add what one call can ask for several times: the files, seeds and sizes."""
    command.add_argument("-o", "--output", type=Path, required=needed, metavar="FILE", help=OUTPUT_HELP)
    command.add_argument(
        "--seed",
        type=int,
        nargs="+",
        help="which of all clips that fit the prompt (default 0); several make several",
    )
    command.add_argument(
        "--variations", type=int, default=1, metavar="N", help="make N clips of each, with the seed and those after it"
    )
    command.add_argument(
        "--size", nargs="+", metavar="COLUMNSxROWS", help="pixels, such as 64x64; several make several clips"
    )


# The flags of the fields that only some modes read.
FIELDS: dict[str, dict] = {
    "image": {"metavar": "FILE", "help": "the first frame"},
    "clip": {"metavar": "FILE", "help": "the clip to begin with"},
    "other": {"metavar": "FILE", "help": "the clip to arrive at"},
    "keyframe": {
        "dest": "keyframes",
        "nargs": 2,
        "action": "append",
        "metavar": ("SECONDS", "FILE"),
        "help": "a picture and when it is seen; may be given several times",
    },
    "side": {"choices": SIDES, "help": "where to go on (default after)"},
    "strength": {
        "type": float,
        "help": "from 0, which returns the clip, to 1, which forgets it (default 0.6; of a remix 0.95)",
    },
    "window": {"type": float, "nargs": 2, "metavar": ("FROM", "TO"), "help": "a stretch of the clip, in seconds"},
    "box": {
        "type": int,
        "nargs": 4,
        "metavar": ("LEFT", "TOP", "RIGHT", "BOTTOM"),
        "help": "a part of the frame, in pixels from its left and top",
    },
    "mask": {"metavar": "FILE", "help": "a picture or clip, white where to make anew"},
    "moments": {"metavar": "FILE", "help": "a storyboard, .yaml or .json: moments, each with at, prompt, image, clip"},
}


def _add_flag(command: argparse.ArgumentParser, flag: str, **how) -> None:
    """Add a flag, and the name that it had in version 0.1, which --help leaves out."""
    command.add_argument(f"--{flag}", **how)
    field = how.setdefault("dest", flag.replace("-", "_"))
    for old in (old for old, new in RENAMED.items() if new == field):
        command.add_argument(f"--{'picture' if old == 'pictures' else old}", **how | {"help": argparse.SUPPRESS})


def _add_settings(command: argparse.ArgumentParser, mode: Mode | None = None) -> None:
    """Add the flags that a mode reads, or those of all; None leaves a choice to the model."""
    if mode is None:
        command.add_argument(
            "--mode", choices=list(MODES), metavar="MODE", help="which way, see longtake modes (default text-to-video)"
        )
    for flag, how in FIELDS.items():
        if mode is None or how.get("dest", flag) in mode.reads:
            _add_flag(command, flag, **how)
    if mode is None or "moments" not in mode.needs:
        command.add_argument("--upsample", metavar="NAME", help=UPSAMPLE_HELP)
        _add_flag(command, "upsampled-prompt", metavar="WORDS", help="what the model reads in place of the prompt")
    if mode is None or (mode.timed and not mode.still):
        command.add_argument("--seconds", type=float, help="how long")
    if mode is None or not mode.still:
        command.add_argument("--fps", type=float, help="frames a second")
    command.add_argument(
        "--steps", type=int, help="how many times the sampler looks at the clip; more is slower and finer"
    )
    command.add_argument("--guidance", type=float, help="how strictly to follow the prompt; 1 is plain")
    if mode is None or mode.needs:
        command.add_argument(
            "--frame-guidance", type=float, help="how strictly to follow the frames that are given; 1 is plain"
        )
    _add_flag(
        command,
        "guidance-interval",
        type=float,
        nargs=2,
        metavar=("FROM", "TO"),
        help="guide between these noise levels, 0 to 1, only",
    )
    _add_flag(
        command, "guidance-rescale", type=float, help="how much of guidance's added contrast to take back, 0 to 1"
    )
    _add_flag(
        command, "negative-prompt", metavar="WORDS", help="what to lead away from, instead of from no words at all"
    )
    _add_flag(command, "sampler", choices=SAMPLERS, help="the sampler")
    _add_flag(command, "watermark", choices=CORNERS, help="show a small watermark, AI, in this corner")
    command.add_argument("--unsigned", action="store_true", help=UNSIGNED_HELP)
    command.add_argument("--model", help="a shipped model or a model folder (default: the newest shipped one)")
    command.add_argument(
        "--keep-latents", action="store_true", help="also write each clip's latents, to extend or edit it"
    )
    command.add_argument(
        "--preview", type=Path, metavar="FILE", help="a png that shows, every few steps, where the clip is heading"
    )
    command.add_argument("--sheet", type=Path, metavar="FILE", help="also write a contact sheet of all clips, a png")
    add_policy_flags(command)


SETTINGS = (
    *("mode", "upsample", "upsampled_prompt", "seconds", "fps", "steps", "guidance", "frame_guidance"),
    *("guidance_interval", "guidance_rescale", "negative_prompt", "sampler", "watermark", "model"),
    *(how.get("dest", flag) for flag, how in FIELDS.items()),
)


def _settings(chosen: argparse.Namespace) -> dict:
    """Return the fields of a request that were asked for; a storyboard's file may hold any."""
    found = {name: value for name in SETTINGS if (value := getattr(chosen, name, None)) is not None}
    if "keyframes" in found:
        found["keyframes"] = [(_seconds(at), path) for at, path in found["keyframes"]]
    if "upsampled_prompt" in found:  # by hand, and by nobody else
        if not found["upsampled_prompt"].strip():
            raise RequestError("upsampled_prompt must say something; got none, so give --upsample none to undo it")
        if found.setdefault("upsample", NO_UPSAMPLER) != NO_UPSAMPLER:
            both = f"{found['upsampled_prompt']!r} and {found['upsample']!r}"
            raise RequestError(f"give --upsampled-prompt or --upsample; got both, {both}")
    if "moments" in found:
        found = read_storyboard(found["moments"]) | {name: value for name, value in found.items() if name != "moments"}
    return found


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RequestError(f"a picture has seconds and a file; got {text!r} for the seconds") from None


def _asked(chosen: argparse.Namespace) -> list[Request]:
    """Return the requests of a command: each prompt with each seed in each size."""
    settings = _settings(chosen)
    board = Request().altered(**settings)
    prompts, sizes = chosen.prompt or [board.prompt], [parse_size(size) for size in chosen.size or ()] or [board.size]
    if chosen.variations < 1:
        raise RequestError(f"variations must be at least 1; got {chosen.variations}")
    seeds = [seed + more for seed in chosen.seed or [board.seed] for more in range(chosen.variations)]
    return [board.altered(prompt=prompt, seed=seed, size=size) for prompt, seed, size in product(prompts, seeds, sizes)]


def _generate(chosen: argparse.Namespace) -> None:
    requests = _asked(chosen)
    _render(requests, _numbered(chosen.output, len(requests)), chosen)


def _again(chosen: argparse.Namespace) -> None:
    from app.render import request_in

    size = parse_size(chosen.size) if chosen.size else None
    before = request = request_in(chosen.file)
    if chosen.mode not in (None, request.mode):  # another mode has a strength of its own
        request = replace(request, strength=None)
    request = request.altered(**_settings(chosen))
    request = request.altered(prompt=chosen.prompt, seed=chosen.seed, size=size)
    request = _rewritten(request, before, chosen)
    output = chosen.output or chosen.file.with_stem(f"{chosen.file.stem}-again")
    _render([request], [output], chosen)


def _rewritten(request: Request, before: Request, chosen: argparse.Namespace) -> Request:
    """Drop what was written of another prompt, or by another upsampler or seed or for another mode."""
    drawn = ("seed", "mode") if request.upsample else ()
    changed = any(getattr(request, name) != getattr(before, name) for name in ("prompt", *drawn))
    return replace(request, upsampled_prompt=chosen.upsampled_prompt) if changed or chosen.upsample else request


def _render(requests: list[Request], outputs: list[Path], chosen: argparse.Namespace) -> None:
    from app.render import render

    for path in render(requests, outputs, chosen.sheet, chosen.keep_latents, chosen.preview, policy_from_flags(chosen)):
        print(path)


def _numbered(output: Path, count: int) -> list[Path]:
    """Name as many files as there are clips."""
    if count == 1:
        return [output]
    digits = max(2, len(str(count)))
    return [output.with_stem(f"{output.stem}-{number:0{digits}d}") for number in range(1, count + 1)]


def _modes(chosen: argparse.Namespace) -> None:
    width = max(map(len, MODES))
    for name, mode in MODES.items():
        print(f"{name:{width}}  {mode.line}\n{'':{width}}  {mode.example}")
    print(f"{'variations':{width}}  Any of these some times over, each with another seed.")
    print(f"{'':{width}}  {MODES['loop'].example.replace('-o', '--variations 4 -o')}")


def _train(chosen: argparse.Namespace) -> None:
    if chosen.part is None:
        chosen.usage.print_help(sys.stdout if chosen.rest else sys.stderr)
        sys.exit(0 if chosen.rest else BAD_INPUT)
    module, function = TRAINING[chosen.part]
    run = importlib.import_module("training.command").parse_run(chosen.part, chosen.rest)
    getattr(importlib.import_module(module), function)(run)


if __name__ == "__main__":
    sys.exit(main())
