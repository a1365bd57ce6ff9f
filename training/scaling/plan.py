"""Plan a scaling study: the runs of a compute-optimal ladder, isoFLOP, rate-by-width and rate-by-batch grids, as data.

longtake scale plan --preset tiny --depths 1 2 3 4 --budgets 1e13 1e14 1e15 -o plan.json
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from dit.model import DiTConfig
from dit.packing import grid_of
from training.config import DiTRun, WorldRun
from training.cost import planned_text_dim, planned_vae
from training.manifest import MANIFEST_FILE, read_manifest
from training.presets import PRESETS
from training.scaling.hardware import MFU, Cluster, planned_cost
from training.scaling.rungs import Rung, ScalingPlan
from training.scaling.shapes import SHAPES, ModelShape, parameter_counts, shape_of_depth, training_flops
from training.train_dit import CAPTION_TOKENS, check_formats, dit_config_for

GRIDS = ("isoflop", "ladder", "rate", "batch")
FEWEST_STEPS = 30  # of a rung; fewer say nothing about a law
LAW = ("isoflop", "ladder")  # grids whose runs laws are fitted to
EMA_SHARE = 0.03  # of a run's steps: the time constant of the averaged weights


@dataclass(frozen=True)
class ScaleOptions:
    """What to plan."""

    depths: tuple[int, ...] = (1, 2, 3, 4)  # depths of the models; width is 64 times depth
    budgets: tuple[float, ...] = (1e13, 1e14, 1e15)  # training FLOPs of each isoFLOP curve
    grids: tuple[str, ...] = ("isoflop",)  # any of isoflop, ladder, rate, batch
    target_flops: float = 0.0  # compute of a further, largest run to predict; 0 holds out the largest of the others
    target_depth: int = 0  # its depth; 0 for the largest of the depths
    small_seeds: int = 2  # seeds of the runs of the smallest budget; all others have one
    tokens_per_parameter: float = 20.0  # tokens per parameter of a block, of the ladder
    rates: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)  # factors of lr in the grids rate and batch
    rate_depths: tuple[int, ...] = (2, 4)  # depths of the grid rate
    rate_widths: tuple[int, ...] = (64, 128, 256)  # widths of the grid rate, and of the grid batch the middle one
    batches: tuple[float, ...] = (0.5, 1.0, 2.0)  # factors of the batch in the grid batch
    grid_flops: float = 0.0  # compute of each run of the grids rate and batch; 0 for the smallest budget
    batch_exponent: float = 0.383  # the batch grows as tokens to this power
    rate_exponent: float = 0.0  # the rate grows as tokens to this power
    warmup_fraction: float = 0.05  # of a run's steps
    decay_fraction: float = 0.2  # of a run's steps
    branch: bool = False  # one trunk for each size, at its smallest batch, with decays branched off at each budget
    transfer: bool = True  # rates follow width and depth from the second depth on the list (training/transfer.py)
    data_clips: int = 0  # clips of the data, to count epochs; 0 to look, or to take what the preset will render
    caption_tokens: int = CAPTION_TOKENS  # text tokens of a caption
    gpus: str = "64xH100"  # cluster whose cost is estimated
    mfu: float = MFU  # share of the peak FLOP/s that training uses
    dollars_per_gpu_hour: float = 0.0  # price; 0 for the one assumed for that accelerator


@dataclass(frozen=True)
class Workload:
    """What a base run trains on: sizes that follow from VAE, text encoder and data."""

    run: DiTRun
    stride: tuple[int, int, int]
    channels: int
    text_dim: int
    tokens: tuple[int, ...]  # of a clip of each format
    clips: int  # of the data, over all formats of several frames; 0 where it is not known
    caption_tokens: int

    def config_of(self, shape: ModelShape) -> DiTConfig:
        """Return the config of a model; raises ValueError where heads do not divide its width."""
        run = replace(self.run, depth=shape.depth, width=shape.width, head_dim=shape.head_dim)
        return dit_config_for(run, self.stride, self.channels, self.text_dim)

    def flops_of(self, config: DiTConfig, batch_sizes: tuple[int, ...]) -> float:
        """Return the training FLOPs of a step."""
        each = [training_flops(config, count, self.caption_tokens) for count in self.tokens]
        return float(sum(count * flops for count, flops in zip(batch_sizes, each, strict=True)))

    def tokens_of(self, batch_sizes: tuple[int, ...]) -> int:
        """Return the tokens of a step."""
        return sum(count * tokens for count, tokens in zip(batch_sizes, self.tokens, strict=True))

    def batch_of(self, tokens: float) -> tuple[int, ...]:
        """Return clips per format in the proportions of the base run, of about `tokens` in all."""
        factor = tokens / self.tokens_of(self.run.batch_sizes)
        return tuple(max(1, round(count * factor)) if count else 0 for count in self.run.batch_sizes)


def open_workload(run: DiTRun, options: ScaleOptions) -> Workload:
    """Return the workload of a base run, whether or not its VAE, text encoder and data are there yet."""
    check_formats(run)
    vae = planned_vae(run)
    config = dit_config_for(run, vae.stride, vae.channels, text_dim := planned_text_dim(run))
    shapes = [vae.latent_shape(frames, rows, columns) for columns, rows, frames in run.formats]
    tokens = tuple(math.prod(grid_of(shape, config.patch)) for shape in shapes)
    clips = options.data_clips or count_clips(run)
    return Workload(run, vae.stride, vae.channels, text_dim, tokens, clips, options.caption_tokens)


def count_clips(run: DiTRun) -> int:
    """Return the clips of a run's data, or those that a preset will render; 0 where neither is known."""
    videos = {format for format in run.formats if format[2] > 1}
    if (run.data / MANIFEST_FILE).exists():
        return sum(not row.dropped for row in read_manifest(run.data))
    found = 0
    for format in videos:
        state = run.data / "x".join(map(str, format)) / "state.json"
        found += json.loads(state.read_text())["clips"] if state.exists() else 0
    if found:
        return found
    for preset in PRESETS["world"].values():
        world: WorldRun = preset()
        if world.folder == run.data:
            return sum(n for format, n in zip(world.formats, world.clips, strict=True) if format in videos)
    return 0


def plan_scaling(run: DiTRun, options: ScaleOptions) -> ScalingPlan:
    """Return the plan of a study. Raises ValueError, in one sentence, for options that do not make one."""
    check_options(options)
    shapes = [shape_of_depth(depth) for depth in sorted(set(options.depths))]
    base = shapes[min(1, len(shapes) - 1)]
    if options.transfer:
        run = replace(run, base_width=run.base_width or base.width, base_depth=run.base_depth or base.depth)
    run = replace(run, validation_seed=run.seed if run.validation_seed is None else run.validation_seed)
    work = open_workload(run, options)
    cells: list[tuple[str, ModelShape, float, float, float]] = []  # grid, shape, FLOPs, factors of rate and batch
    if "isoflop" in options.grids:
        cells += [("isoflop", shape, budget, 1, 1) for budget in sorted(set(options.budgets)) for shape in shapes]
    if "ladder" in options.grids:
        cells += [("ladder", shape, _ladder_flops(work, shape, options), 1, 1) for shape in shapes]
    small = options.grid_flops or min(options.budgets)
    grid_shapes = [ModelShape(depth, width, 32) for depth in options.rate_depths for width in options.rate_widths]
    if "rate" in options.grids:
        cells += [("rate", shape, small, rate, 1) for shape in grid_shapes for rate in options.rates]
    if "batch" in options.grids:
        middle = grid_shapes[len(options.rate_widths) // 2]
        cells += [("batch", middle, small, rate, batch) for batch in options.batches for rate in options.rates]
    reference = _reference_tokens(work, [cell for cell in cells if cell[0] in LAW] or cells)
    rungs, skipped = [], []
    for grid, shape, flops, rate, batch in cells:
        rung = _make_rung(work, options, grid, shape, flops, rate, batch, reference)
        (rungs if rung.steps >= FEWEST_STEPS else skipped).append(rung)
    if options.target_flops:
        depth = options.target_depth or max(options.depths)
        target = _make_rung(work, options, "isoflop", shape_of_depth(depth), options.target_flops, 1, 1, reference)
        if any(rung.flops >= 0.99 * target.flops for rung in rungs):
            raise ValueError(
                f"target_flops must be above the other runs'; got {options.target_flops:g}, others have "
                f"{max(rung.flops for rung in rungs):.3g}"
            )
        rungs.append(target)
    rungs = _replicated(_without_duplicates(rungs), options.small_seeds)
    rungs = _held_out(_branched(rungs) if options.branch else rungs)
    return ScalingPlan(run, tuple(rungs), _assumptions(work, options), _warnings(work, options, rungs, skipped))


def check_options(options: ScaleOptions) -> None:
    """Raise ValueError for options out of range, before anything is computed."""
    unknown = [grid for grid in options.grids if grid not in GRIDS]
    if unknown or not options.grids:
        raise ValueError(f"grids must be some of {', '.join(GRIDS)}; got {' '.join(unknown) or 'none'}")
    for name in ("depths", "budgets", "rates", "batches", "rate_depths", "rate_widths"):
        values = getattr(options, name)
        if not values or min(values) <= 0 or not all(map(math.isfinite, values)):
            raise ValueError(f"{name} must be numbers above 0; got {' '.join(map(str, values)) or 'none'}")
    if options.small_seeds < 1:
        raise ValueError(f"small_seeds must be at least 1; got {options.small_seeds}")
    if not 0 < options.decay_fraction + options.warmup_fraction <= 1:
        raise ValueError(
            "warmup_fraction and decay_fraction must be at most 1 together; got "
            f"{options.warmup_fraction:g} and {options.decay_fraction:g}"
        )
    if wrong := [width for width in options.rate_widths if width % 32]:
        raise ValueError(f"rate_widths must be multiples of 32, the width of a head; got {wrong[0]}")


def _ladder_flops(work: Workload, shape: ModelShape, options: ScaleOptions) -> float:
    """Return the FLOPs of a run that sees `tokens_per_parameter` tokens for each parameter of a block."""
    config = work.config_of(shape)
    counts = parameter_counts(config, max(work.tokens), options.caption_tokens)
    per_token = work.flops_of(config, work.run.batch_sizes) / work.tokens_of(work.run.batch_sizes)
    return options.tokens_per_parameter * counts["blocks"] * per_token


def _reference_tokens(work: Workload, cells: list) -> float:
    """Return the geometric mean of the tokens of all runs: there, batch and rate are those of the base run."""
    step = work.run.batch_sizes
    seen = [flops * work.tokens_of(step) / work.flops_of(work.config_of(cell), step) for _, cell, flops, *_ in cells]
    return math.exp(sum(map(math.log, seen)) / len(seen))


def _make_rung(
    work: Workload,
    options: ScaleOptions,
    grid: str,
    shape: ModelShape,
    flops: float,
    rate: float,
    batch: float,
    reference: float,
) -> Rung:
    config, run = work.config_of(shape), work.run
    tokens = flops * work.tokens_of(run.batch_sizes) / work.flops_of(config, run.batch_sizes)
    wanted = work.tokens_of(run.batch_sizes) * batch * (tokens / reference) ** options.batch_exponent
    batch_sizes = work.batch_of(wanted)
    step_flops, step_tokens = work.flops_of(config, batch_sizes), work.tokens_of(batch_sizes)
    steps = max(1, round(flops / step_flops))
    lr = float(f"{run.lr * rate * (tokens / reference) ** options.rate_exponent:.4g}")
    videos = sum(n for n, format in zip(batch_sizes, run.formats, strict=True) if format[2] > 1)
    counts = parameter_counts(config, max(work.tokens), options.caption_tokens)
    name = f"d{shape.depth}w{shape.width}-{flops:.3g}".replace("+", "")
    name += f"-lr{rate:g}-b{batch:g}" if grid not in LAW else ""
    return Rung(
        name=name,
        grids=(grid,),
        depth=shape.depth,
        width=shape.width,
        head_dim=shape.head_dim,
        steps=steps,
        warmup_steps=max(1, round(options.warmup_fraction * steps)),
        decay_steps=max(1, round(options.decay_fraction * steps)),
        lr=lr,
        batch_sizes=batch_sizes,
        ema_decay=round(min(run.ema_decay, max(0.5, 1 - 1 / (EMA_SHARE * steps + 1e-9))), 5),
        seed=run.seed,
        tokens=float(steps * step_tokens),
        flops=float(steps * step_flops),
        parameters=counts,
        epochs=steps * videos / work.clips if work.clips else 0.0,
    )


def _without_duplicates(rungs: list[Rung]) -> list[Rung]:
    """Join rungs that train the same, and name all of their grids."""
    found: dict[tuple, Rung] = {}
    for rung in rungs:
        key = (rung.depth, rung.width, rung.head_dim, rung.steps, rung.lr, rung.batch_sizes, rung.seed)
        grids = (*found[key].grids, *rung.grids) if key in found else rung.grids
        found[key] = replace(found.get(key, rung), grids=tuple(dict.fromkeys(grids)))
    return list(found.values())


def _replicated(rungs: list[Rung], seeds: int) -> list[Rung]:
    """Repeat the runs of the smallest budget of the laws' grids with further seeds."""
    smallest = min((rung.budget for rung in rungs if set(rung.grids) & set(LAW)), default=0.0)
    found = []
    for rung in rungs:
        small = set(rung.grids) & set(LAW) and rung.budget <= smallest
        more = [replace(rung, seed=rung.seed + n, name=f"{rung.name}-seed{rung.seed + n}") for n in range(1, seeds)]
        found += [rung, *(more if small else [])]
    return found


def _held_out(rungs: list[Rung]) -> list[Rung]:
    """Hold out the runs of the largest compute and, among these, of the largest model."""
    law = [rung for rung in rungs if set(rung.grids) & set(LAW)]
    if len(law) < 2:  # nothing would be left to fit
        return rungs
    largest = max(law, key=lambda rung: (rung.budget, rung.depth))
    same = lambda rung: (rung.depth, rung.width, rung.steps) == (largest.depth, largest.width, largest.steps)
    return [replace(rung, held_out=bool(set(rung.grids) & set(LAW)) and same(rung)) for rung in rungs]


def _branched(rungs: list[Rung]) -> list[Rung]:
    """Let the runs of one size and seed share a trunk, with the batch, rate and averaging of the shortest."""
    groups: dict[tuple, list[Rung]] = {}
    for rung in rungs:
        if "isoflop" in rung.grids:
            groups.setdefault((rung.depth, rung.width, rung.seed), []).append(rung)
    trunks: dict[int, Rung] = {}
    for (depth, width, seed), members in groups.items():
        first = min(members, key=lambda rung: rung.flops)
        for rung in members if len(members) > 1 else ():
            steps = max(1, round(rung.tokens * first.steps / first.tokens))
            trunks[id(rung)] = replace(
                rung,
                steps=steps,
                decay_steps=max(1, round(rung.decay_steps / rung.steps * steps)),
                **{name: getattr(first, name) for name in ("warmup_steps", "lr", "batch_sizes", "ema_decay")},
                tokens=steps * first.tokens / first.steps,
                flops=steps * first.flops / first.steps,
                trunk=f"d{depth}w{width}-seed{seed}",
            )
    return [trunks.get(id(rung), rung) for rung in rungs]


def _assumptions(work: Workload, options: ScaleOptions) -> tuple[str, ...]:
    cluster = Cluster.parse(options.gpus, options.mfu, options.dollars_per_gpu_hour)
    return (
        cluster.assumptions(),
        f"clips of {', '.join(map(str, work.tokens))} tokens, captions of {options.caption_tokens}, "
        f"text embeddings {work.text_dim} wide",
        f"batch grows as tokens^{options.batch_exponent:g}, rate as tokens^{options.rate_exponent:g}; "
        + (
            f"rates follow width and depth from {work.run.base_width} and {work.run.base_depth}"
            if work.run.base_width
            else "one rate for all widths and depths"
        ),
    )


def _warnings(work: Workload, options: ScaleOptions, rungs: list[Rung], skipped: list[Rung]) -> tuple[str, ...]:
    """Say what a reader must know: repeated data, rungs left out, models that do not fit, idle accelerators."""
    cluster = Cluster.parse(options.gpus, options.mfu, options.dollars_per_gpu_hour)
    found = [f"left out: {rung.name} would have {rung.steps} steps, fewer than {FEWEST_STEPS}" for rung in skipped]
    repeated = [rung for rung in rungs if rung.epochs > 1]
    if repeated:
        most = max(repeated, key=lambda rung: rung.epochs)
        found.append(
            f"{len(repeated)} of {len(rungs)} runs see their {work.clips:,} clips more than once, {most.name} "
            f"{most.epochs:.1f} times: the law of tokens holds for fresh data"
        )
    if not work.clips:
        found.append(f"the clips of {work.run.data} are not known, so epochs are not counted: give --data-clips")
    for rung in rungs:
        cost = rung_cost(work, rung, cluster)
        if not cost.fits:
            found.append(
                f"{rung.name} needs {cost.bytes / 1e9:.0f} GB on each of {cluster.count} {cluster.kind}, which have "
                f"{cluster.accelerator.bytes / 1e9:.0f}: give more --gpus"
            )
    if not rungs:
        raise ValueError(f"a plan must have runs of {FEWEST_STEPS} steps or more; raise --budgets or lower --depths")
    idle = [rung for rung in rungs if sum(rung.batch_sizes) < cluster.count]
    if idle:
        found.append(f"{len(idle)} runs have fewer clips a step than the {cluster.count} accelerators, so some idle")
    return tuple(found)


def rung_cost(work: Workload, rung: Rung, cluster: Cluster):
    """Return the cost of a rung on a cluster."""
    config = work.config_of(ModelShape(rung.depth, rung.width, rung.head_dim))
    return planned_cost(rung.flops, config, cluster, sum(rung.batch_sizes), max(work.tokens))


def plan_lines(plan: ScalingPlan, options: ScaleOptions) -> list[str]:
    """Return a plan as lines of a table, with its cost, assumptions and warnings."""
    work, cluster = (
        open_workload(plan.base, options),
        Cluster.parse(options.gpus, options.mfu, options.dollars_per_gpu_hour),
    )
    lines = [
        f"{'run':24} {'parameters':>10} {'tokens':>9} {'FLOPs':>9} {'steps':>7} {'clips':>6} {'rate':>8} {'epochs':>6} "
        f"{'PF-days':>9} {'GPU-h':>9} {'dollars':>9} {'wall h':>8} {'GB each':>7}"
    ]
    total = [0.0, 0.0, 0.0, 0.0]
    for rung in plan.rungs:
        cost = rung_cost(work, rung, cluster)
        sums = (cost.petaflop_days, cost.gpu_hours, cost.dollars, cost.wall_hours)
        total = [before + own for before, own in zip(total, sums, strict=True)]
        lines.append(
            f"{rung.name:24} {rung.parameters['all']:10.4g} {rung.tokens:9.3g} {rung.flops:9.3g} {rung.steps:7} "
            f"{sum(rung.batch_sizes):6} {rung.lr:8.2g} {rung.epochs:6.2f} {cost.petaflop_days:9.2g} "
            f"{cost.gpu_hours:9.2g} {cost.dollars:9.2g} {cost.wall_hours:8.2g} {cost.bytes / 1e9:7.2g}"
            + ("  predicted, not fitted" if rung.held_out else "")
        )
    lines.append(
        f"{len(plan.rungs)} runs: {sum(rung.flops for rung in plan.rungs):.3g} FLOPs, {total[0]:.2g} PF-days, "
        f"{total[1]:.2g} GPU-hours, {total[2]:.2g} dollars, {total[3]:.2g} h one after the other"
    )
    return [*lines, *(f"assumed: {line}" for line in plan.assumptions), *(f"warning: {w}" for w in plan.warnings)]


def write_plan(run: DiTRun, options: ScaleOptions, path: Path | None) -> list[str]:
    """Plan a study, write it to `path`, and return its table."""
    plan = plan_scaling(run, options)
    if path is not None:
        plan.write(path)
    return plan_lines(plan, options)


def nearest_shape(parameters: float, work: Workload) -> ModelShape:
    """Return the shape of the ladder whose parameters are nearest, as a ratio."""
    counts = {shape: parameter_counts(work.config_of(shape), 1, 1)["all"] for shape in SHAPES}
    return min(counts, key=lambda shape: abs(math.log(counts[shape] / parameters)))
