"""`longtake render JOBS -o DIR`: a batch of clips. Heavy modules are imported when it runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from app.batch.batch import EXISTS, PACK_SIZE, Batch, find_existing, fit_workers, refuse_too_large, render_batch
from app.batch.batch import summarize as summarize_batch
from app.batch.existing import Examiner
from app.batch.manifest import Manifest
from app.batch.names import with_absolute_paths
from app.batch.report import Report
from app.batch.rows import STDIN, BatchRow, read_rows
from app.batch.shards import parse_shard, select_shard
from app.batch.sweeps import SWEEP_MODES, expand_rows
from app.commands.request_flags import UPSAMPLE_HELP, add_flag
from app.exit_codes import PARTIAL
from app.formats import VIDEO_SUFFIXES
from app.policy.policy import add_policy_flags, refusal_reason
from app.provenance.signing import UNSIGNED_HELP, prepare_signing
from app.queue.disk import when_there_is_room
from app.queue.processes import plan_workers
from app.registry import describe_unlearned
from dit.request import RENAMED, RequestError, parse_size


def add_render(commands) -> None:
    """Add the command that renders a batch."""
    render = commands.add_parser(
        "render",
        help="make a batch of clips from a file of prompts or requests",
        description="Make a batch of clips. Run again, it makes only what is missing.",
        epilog="Exit codes: 0 all exist, 1 a failure, 2 nothing could be started, 3 some failed, 130 interrupted.",
    )
    render.add_argument(
        "jobs",
        metavar="JOBS",
        help=".txt with one prompt per line, .jsonl, .csv, .tsv or .parquet with one request per row, a storyboard in "
        f".yaml or .json, or {STDIN} for standard input",
    )
    render.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the folder for the clips")
    render.add_argument(
        "--mode",
        choices=SWEEP_MODES,
        default=SWEEP_MODES[0],
        help="how lists of values are combined: each with each (default), or in step",
    )
    render.add_argument(
        "--draw", action="store_true", help="take one alternative of each {a|b}, drawn by the seed, not all"
    )
    render.add_argument("--seed", type=int, nargs="+", help="seeds, for rows without")
    render.add_argument("--size", nargs="+", metavar="COLUMNSxROWS", help="sizes, for rows without")
    render.add_argument("--upsample", metavar="NAME", help=f"for rows without: {UPSAMPLE_HELP}")
    render.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field, for rows without")
    render.add_argument("--suffix", choices=VIDEO_SUFFIXES, default=VIDEO_SUFFIXES[0], help="of clips (default .mp4)")
    render.add_argument("--keep-latents", action="store_true", help="also write each clip's latents")
    render.add_argument("--shard", metavar="I/N", help="make shard I of N, from 1; or slurm, for its variables")
    render.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes (default: one per GPU, or one per CPU core); 0 works in this one",
    )
    render.add_argument(
        "--engine", choices=("queue", "ray"), default="queue", help="this machine's queue (default), or a Ray cluster"
    )
    add_flag(
        render,
        "pack-size",
        "together",
        type=int,
        default=PACK_SIZE,
        metavar="N",
        help=f"clips of similar cost that may be made as one pack, the same bytes as alone (default {PACK_SIZE})",
    )
    add_flag(render, "max-clips", "most", type=int, default=1_000_000, metavar="N", help="refuse more clips than this")
    render.add_argument("--dry-run", action="store_true", help="print how many clips, the time, disk space and memory")
    render.add_argument("--unsigned", action="store_true", help=UNSIGNED_HELP)
    render.add_argument("--json", action="store_true", help="print a JSON object for each clip")
    add_policy_flags(render)
    render.set_defaults(run=_render)


def _render(args: argparse.Namespace) -> int:
    batch = _read_batch(args)
    workers, devices = plan_workers(args.workers)
    if args.pack_size < 1:
        raise RequestError(f"pack size must be a number from 1; got {args.pack_size}")
    if not args.dry_run:
        prepare_signing()
        when_there_is_room(lambda: batch.real_folder.mkdir(parents=True, exist_ok=True), batch.real_folder)
        _recover(batch)
    with closing(Manifest(batch.real_folder, writable=not args.dry_run)) as manifest:
        examiner = Examiner(batch.real_folder, manifest, args.keep_latents)
        batch, estimates = find_existing(batch, examiner), []
        if remark := describe_unlearned(item.request for item in batch.missing if item.request):
            print(f"longtake: {remark}", file=sys.stderr)
        if args.engine == "queue" or args.dry_run:  # the memory of a cluster's machines is not known
            batch, estimates = refuse_too_large(batch, devices[0], workers)
        if args.dry_run:
            values, sentence = summarize_batch(batch, estimates, workers)
            print(json.dumps(values) if args.json else sentence)
            return 0
        if estimates:
            workers, args.pack_size = fit_workers(estimates, workers, len(devices), args.pack_size)
        from tqdm import tqdm

        report = Report(batch, manifest, args.json)
        for item in batch.invalid:
            report.failed(item, item.error or "")
        for item in batch.existing:
            report.existing(item)
        if batch.missing:
            if args.engine == "ray":
                from app.batch.cluster import render_on_cluster

                rendered = render_on_cluster(batch, args.workers, args.keep_latents, args)
            else:
                rendered = render_batch(batch, examiner, workers, args.keep_latents, devices, args, args.pack_size)
            for item, job in tqdm(rendered, "rendering", len(batch.missing), unit="clip", file=sys.stderr):
                report.existing(item) if job.state == EXISTS else report.ended(item, job)
    return PARTIAL if report.failures else 0


def _recover(batch: Batch) -> None:
    """Deliver what dead workers left whole, before the files are looked at."""
    from app.queue.jobs import DATABASE, Queue
    from app.queue.lease import recover

    if (batch.queue_folder / DATABASE).is_file():
        when_there_is_room(lambda: recover(Queue(batch.queue_folder)), batch.real_folder)


def _read_batch(args: argparse.Namespace) -> Batch:
    rows = read_rows(None if args.jobs == STDIN else Path(args.jobs))
    if not rows:
        raise RequestError(f"a batch must have rows; {args.jobs} has none")
    sweeps: dict[str, list] = {}
    if args.seed:
        sweeps["seed"] = args.seed
    if args.size:
        sweeps["size"] = [parse_size(size) for size in args.size]
    defaults: dict[str, Any] = {"upsample": args.upsample} if args.upsample else {}
    for setting in args.set:
        name, equals, value = setting.partition("=")
        if not equals:
            raise RequestError(f"a setting must be FIELD=VALUE; got {setting!r}")
        name = RENAMED.get(str(name), str(name))
        try:
            defaults[name] = json.loads(value)
        except ValueError:
            defaults[name] = value
    rows = _with_model_hashes(rows, defaults)
    items = expand_rows(rows, sweeps, args.mode, args.draw, defaults, args.max_clips, args.suffix)
    items = [
        replace(
            item,
            error=item.error or refusal_reason(item.request, args.policy),
            request=item.request and with_absolute_paths(item.request),
        )
        for item in items
    ]
    shard = parse_shard(args.shard, os.environ) if args.shard else (1, 1)
    return Batch(args.output, select_shard(items, *shard), shard)


def _with_model_hashes(rows: list[BatchRow], defaults: dict[str, Any]) -> list[BatchRow]:
    """Add the hash of its weights to each row, so that clips of other weights get other names."""
    from app.registry import model_folder
    from dit.adapters.load import hash_of

    @cache
    def model_hash(name: str | None) -> dict[str, str]:
        try:
            return {"model_hash": hash_of(model_folder(name))}
        except (ValueError, OSError):
            return {}  # the error is reported by the clip's job

    models = [row.fields.get("model", defaults.get("model")) for row in rows]
    return [
        replace(row, fields=model_hash(model) | row.fields) if model is None or isinstance(model, str) else row
        for row, model in zip(rows, models, strict=True)
    ]
