"""The command `longtake`: parse the command line, call a function. Heavy modules are imported when they are needed."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import nullcontext

from app.commands.caption import add_caption
from app.commands.estimate import add_estimate
from app.commands.generate import add_generate
from app.commands.jobs import add_jobs
from app.commands.measure import add_measure
from app.commands.models import add_models
from app.commands.prepare import add_prepare
from app.commands.render import add_render
from app.commands.serve import add_serve
from app.commands.studio import add_studio
from app.commands.training import add_training
from app.commands.verify import add_sign, add_verify
from app.exit_codes import BAD_INPUT, FAILURE, INTERRUPTED
from app.provenance.signing import signing_disabled

TRACEBACK = "LONGTAKE_TRACEBACK"  # environment variable: set it to see where an unexpected error came from


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for bad input, 1 for a failure, 3 where a part of many failed, 130
    when interrupted.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # two spinning threads on a busy machine are many times slower
    os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "true")
    args, rest = make_parser().parse_known_args(argv)
    if args.command in ("world", "train", "scale"):  # whose flags are parsed with the fields of a run
        args.rest = rest
    elif rest:
        make_parser().error(f"{args.command} does not know {' '.join(rest)}; see longtake {args.command} --help")
    try:
        with signing_disabled() if getattr(args, "unsigned", False) else nullcontext():
            return args.run(args) or 0
    except KeyboardInterrupt as interrupt:  # a training run says how to resume it
        return _print_error(str(interrupt) or "interrupted", INTERRUPTED)
    except (ValueError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        return _fail(error, str(error), BAD_INPUT)
    except OSError as error:
        return _fail(error, str(error), FAILURE)
    except Exception as error:
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        return _fail(error, f"{message} (unexpected; set {TRACEBACK}=1 to see where it came from)", FAILURE)


def _fail(error: Exception, message: str, code: int) -> int:
    if os.environ.get(TRACEBACK):
        raise error
    return _print_error(message, code)


def _print_error(message: str, code: int) -> int:
    print(f"longtake: {message}", file=sys.stderr)
    return code


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        "longtake",
        description="Make videos from text, and train the models that do.",
        epilog='Start with: longtake generate "a red ball bounces" -o clip.mp4',
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, dest="command")
    add_generate(commands)
    add_measure(commands)
    add_estimate(commands)
    add_models(commands)
    add_render(commands)
    add_jobs(commands)
    add_serve(commands)
    add_studio(commands)
    add_sign(commands)
    add_verify(commands)
    add_caption(commands)
    add_prepare(commands)
    add_training(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
