"""`longtake sign` and `longtake verify`: Content Credentials, and whether files are as they were signed. Nothing heavy
is imported before it is needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from app.exit_codes import PARTIAL

ABOUT = """Say of each file whether it is as it was signed: "trusted" when also the signer is, by this machine or the
authorities in the files named in LONGTAKE_TRUST, "valid" when the signer is unknown here, "tampered" or "unsigned";
and who made it, with which model, from what. A .webm or .mkv has its credentials beside it, in a file of its name and
.c2pa. The exit code is 0 when all are trusted or valid, else 3."""


def add_sign(commands) -> None:
    """Add the command that signs files which longtake made."""
    sign = commands.add_parser(
        "sign",
        help="give files Content Credentials: made by an AI model, which, from what",
        description="Sign clips and pictures that longtake made, with the certificate that LONGTAKE_CERTIFICATE and "
        "LONGTAKE_KEY name, or else one that is made once for this user. What longtake writes is signed already, "
        "unless it was made with --unsigned.",
    )
    sign.add_argument("files", nargs="+", metavar="FILE", help="a clip or picture that carries its request")
    sign.set_defaults(act=_sign)


def add_verify(commands) -> None:
    """Add the command that reads Content Credentials."""
    verify = commands.add_parser(
        "verify", help="say who made files, with what, and whether they were changed since", description=ABOUT
    )
    verify.add_argument("files", nargs="+", metavar="FILE", help="a video or picture, of ours or anybody's")
    verify.add_argument("--json", action="store_true", help="print JSON lines")
    verify.set_defaults(act=_verify)


def _sign(chosen: argparse.Namespace) -> None:
    from app.provenance.credentials import check_signing, sign
    from app.registry import DEFAULT_MODEL
    from app.render import request_in

    check_signing()
    requests = [request_in(Path(file)) for file in chosen.files]
    for file, request in zip(chosen.files, requests, strict=True):
        print(sign(file, replace(request, model=request.model or DEFAULT_MODEL)))


def _verify(chosen: argparse.Namespace) -> int:
    from app.provenance.credentials import TRUSTED, VALID, verify

    failed = 0
    for file in chosen.files:
        try:
            found = verify(file)
        except (ValueError, OSError) as error:  # which say what is the matter with a file
            sentence = str(error) if file in str(error) else f"{file}: {error}"
            print(f"longtake: {sentence}", file=sys.stderr)
            failed += 1
            continue
        failed += found.state not in (TRUSTED, VALID)
        if chosen.json:
            print(json.dumps({"file": file, **asdict(found)}))
        else:
            print("\t".join(filter(None, map(_printable, (file, found.state, found.summary)))))
    return PARTIAL if failed else 0


def _printable(text: str) -> str:
    """Write any text on one line, and nothing in it that a terminal would obey: names come from strangers' files."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
