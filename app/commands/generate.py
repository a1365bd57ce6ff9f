"""`longtake generate`, one command for each mode, `longtake again` and `longtake modes`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from app.commands.request_flags import add_output_flags, add_request_flags, read_fields, read_requests
from app.policy.policy import policy_from_flags
from app.registry import check_upsampler_choice
from dit.modes import MODES
from dit.request import Request, parse_size


def add_generate(commands) -> None:
    """Add the commands that generate clips and images."""
    generate = commands.add_parser("generate", help="generate clips or images from prompts")
    generate.add_argument("prompt", nargs="+", help="what to show; several prompts make several clips")
    add_output_flags(generate)
    add_request_flags(generate)
    generate.set_defaults(run=_generate)

    again = commands.add_parser("again", help="make a clip again from its own file, as it was or with changes")
    again.add_argument("file", type=Path, help="a clip or image that longtake made")
    again.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="where to write it (default: in the folder of FILE, with -again in its name)",
    )
    again.add_argument("--prompt", help="another prompt")
    again.add_argument("--seed", type=int, help="another seed")
    again.add_argument("--size", metavar="COLUMNSxROWS", help="another size")
    add_request_flags(again)
    again.set_defaults(run=_again)

    for name, mode in MODES.items():
        command = commands.add_parser(
            name, help=mode.summary, description=mode.summary, epilog=f"Example: {mode.example}"
        )
        command.add_argument("prompt", nargs="*", help="what to show; several prompts make several clips")
        add_output_flags(command)
        add_request_flags(command, mode)
        command.set_defaults(run=_generate, mode=name)

    modes = commands.add_parser("modes", help="list every way to make a clip")
    modes.set_defaults(run=_modes)


def _generate(args: argparse.Namespace) -> None:
    requests = read_requests(args)
    _render(requests, numbered_outputs(args.output, len(requests)), args)


def _again(args: argparse.Namespace) -> None:
    from app.render import read_request

    size = parse_size(args.size) if args.size else None
    original = request = read_request(args.file)
    if args.mode not in (None, request.mode):  # another mode has another default strength
        request = replace(request, strength=None)
    request = request.altered(**read_fields(args))
    request = request.altered(prompt=args.prompt, seed=args.seed, size=size)
    request = _drop_stale_upsampling(request, original, args)
    check_upsampler_choice(request, (args.upsample,))
    output = args.output or args.file.with_stem(f"{args.file.stem}-again")
    _render([request], [output], args)


def _drop_stale_upsampling(request: Request, original: Request, args: argparse.Namespace) -> Request:
    """Drop the upsampled prompt where its prompt, upsampler, seed or mode changed."""
    sampled = ("seed", "mode") if request.upsample else ()
    changed = any(getattr(request, name) != getattr(original, name) for name in ("prompt", *sampled))
    return replace(request, upsampled_prompt=args.upsampled_prompt) if changed or args.upsample else request


def _render(requests: list[Request], outputs: list[Path], args: argparse.Namespace) -> None:
    from app.render import render

    for path in render(requests, outputs, args.sheet, args.keep_latents, args.preview, policy_from_flags(args)):
        print(path)


def numbered_outputs(output: Path, count: int) -> list[Path]:
    """Return `count` file names: the output itself, or numbers before its suffix."""
    if count == 1:
        return [output]
    digits = max(2, len(str(count)))
    return [output.with_stem(f"{output.stem}-{number:0{digits}d}") for number in range(1, count + 1)]


def _modes(args: argparse.Namespace) -> None:
    width = max(map(len, MODES))
    for name, mode in MODES.items():
        print(f"{name:{width}}  {mode.summary}\n{'':{width}}  {mode.example}")
    print(f"{'variations':{width}}  Any of these several times, each with another seed.")
    print(f"{'':{width}}  {MODES['loop'].example.replace('-o', '--variations 4 -o')}")
