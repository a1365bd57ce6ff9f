"""`longtake sign` and `longtake verify`: Content Credentials of files. Heavy modules are imported when they run."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from app.exit_codes import PARTIAL

ABOUT = """Print the state of each file: "trusted", unchanged since it was signed by this machine or by an authority in
the files named in LONGTAKE_TRUST; "valid", unchanged since an unknown signer signed it; "tampered"; or "unsigned"; and
who made it, with which model, from which files. The credentials of a .webm or .mkv are in a second file, its name with
.c2pa. The exit code is 0 when all are trusted or valid, else 3."""


def add_sign(commands) -> None:
    """Add the command that signs files which longtake made."""
    sign = commands.add_parser(
        "sign",
        help="give files Content Credentials: made by an AI model, which, from what",
        description="Sign clips and images that longtake made, with the certificate that LONGTAKE_CERTIFICATE and "
        "LONGTAKE_KEY name, or else one that is made once for this user. What longtake writes is signed already, "
        "unless it was made with --unsigned.",
    )
    sign.add_argument("files", nargs="+", metavar="FILE", help="a clip or image that carries its request")
    sign.set_defaults(run=_sign)


def add_verify(commands) -> None:
    """Add the command that reads Content Credentials."""
    verify = commands.add_parser(
        "verify", help="print who made files, with what, and whether they were changed since", description=ABOUT
    )
    verify.add_argument("files", nargs="+", metavar="FILE", help="a video or image, made by longtake or not")
    verify.add_argument("--json", action="store_true", help="print JSON lines")
    verify.set_defaults(run=_verify)


def _sign(args: argparse.Namespace) -> None:
    from app.provenance.credentials import check_signing, sign
    from app.registry import DEFAULT_MODEL
    from app.render import read_request

    check_signing()
    requests = [read_request(Path(file)) for file in args.files]
    for file, request in zip(args.files, requests, strict=True):
        print(sign(file, replace(request, model=request.model or DEFAULT_MODEL)))


def _verify(args: argparse.Namespace) -> int:
    from app.provenance.verification import TRUSTED, VALID, verify

    failed = 0
    for file in args.files:
        try:
            verdict = verify(file)
        except (ValueError, OSError) as error:  # their messages are written for users
            message = str(error) if file in str(error) else f"{file}: {error}"
            print(f"longtake: {message}", file=sys.stderr)
            failed += 1
            continue
        failed += verdict.state not in (TRUSTED, VALID)
        if args.json:
            print(json.dumps({"file": file, **asdict(verdict)}))
        else:
            print("\t".join(filter(None, map(_printable, (file, verdict.state, verdict.summary)))))
    return PARTIAL if failed else 0


def _printable(text: str) -> str:
    """Write text on one line, without control characters: names in credentials come from strangers."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
