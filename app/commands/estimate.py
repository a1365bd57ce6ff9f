"""`longtake estimate`: time and memory of clips before they are made. Heavy modules are imported when it runs."""

from __future__ import annotations

import argparse
import json

from app.commands.request_flags import add_output_flags, add_request_flags, read_requests
from app.formats import VIDEO_SUFFIXES


def add_estimate(commands) -> None:
    """Add the command that estimates what `generate` would take; it has the same flags."""
    estimate = commands.add_parser(
        "estimate",
        help="estimate time and memory of clips before they are made",
        description="Estimate time and memory of clips, with the arithmetic. Takes every flag of generate; exit code 2 "
        "where a clip does not fit in memory.",
    )
    estimate.add_argument("prompt", nargs="*", help="what to show")
    add_output_flags(estimate, required=False)
    add_request_flags(estimate)
    estimate.add_argument("--json", action="store_true", help="print a JSON object for each clip, with all parts")
    estimate.set_defaults(run=_estimate)


def _estimate(args: argparse.Namespace) -> None:
    import torch

    from app.queue.estimate import Estimator

    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    estimator = Estimator(device, torch.get_num_threads())
    suffix = args.output.suffix if args.output else VIDEO_SUFFIXES[0]
    requests = read_requests(args)
    for request in requests:
        found = estimator.estimate(request, suffix, exact=True)
        print(json.dumps(found.as_dict(), ensure_ascii=False) if args.json else found.explain())
    for request in requests:
        estimator.check_fits(request)
