"""The scaling laboratory: transfer rules, plans, laws on surfaces with known exponents, and what it refuses."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dit.model import DiT, DiTConfig
from dit.packing import pack
from training.config import DiTRun
from training.muon import build_muon
from training.presets.tiny import dit_tiny
from training.scaling.hardware import PETAFLOP_DAY, Cluster, planned_cost, run_cost
from training.scaling.laws import fit_power_law, fit_surface, isoflop_parabola, largest_jump, optimum
from training.scaling.plan import ScaleOptions, plan_scaling
from training.scaling.published import compare_costs
from training.scaling.rungs import ScalingPlan, command_words, run_from_json, run_to_json
from training.scaling.shapes import SHAPES, training_flops
from training.train_dit import check_formats
from training.transfer import WIDTH_FAN_IN, transfer_scales

SURFACES = ((1.7, 400, 0.34, 410, 0.28), (0.2, 3, 0.25, 60, 0.45), (0.1, 30, 0.5, 20, 0.3))  # E, A, alpha, B, beta


def dit_of(width, depth=2):
    torch.manual_seed(0)
    return DiT.from_dit_config(DiTConfig(depth=depth, width=width, head_dim=32, text_dim=32))


def batch_of(clips=3):
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    sigmas = [torch.full((2, 4, 4), 0.3 * (n + 1)) for n in range(clips)]
    data, noise = [draw(16, 2, 4, 4) for _ in sigmas], [draw(16, 2, 4, 4) for _ in sigmas]
    packed = lambda values: pack(values, sigmas, [8.0] * clips, (1, 2, 2))
    noisy = packed([(1 - s) * a + s * b for a, b, s in zip(data, noise, sigmas, strict=True)])
    return noisy, packed([b - a for a, b in zip(data, noise, strict=True)]).tokens, draw(4 * clips, 32), draw(clips, 32)


def movement(width, transfer, depth=2, steps=4, lr=8e-3):
    """By how much the output and the stream after the last block change in some steps, at a rate for width 64."""
    dit = dit_of(width, depth)
    scales = transfer_scales(dit, 64, 2) if transfer else None
    optimizer = build_muon(dit.muon_params(), dit, DiTRun(lr=lr), scales)
    noisy, target, text, pooled = batch_of()
    streams, outputs = [], []
    dit.blocks[-1].register_forward_hook(lambda module, inputs, output: streams.append(output.detach()))
    for _ in range(steps + 1):
        outputs.append(output := dit(noisy, text, pooled, (4, 4, 4)))
        optimizer.zero_grad()
        (output - target).square().mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        optimizer.step()
    return [float((values[-1] - values[0]).detach().square().mean().sqrt()) for values in (outputs, streams)]


@pytest.mark.slow  # trains two widths, with and without the rules
def test_what_a_step_changes_does_not_grow_with_the_width():
    """Coordinate check. In six steps the stream of width 256 grows fivefold without the rules, of 512 1,400-fold."""
    growth = {}
    for rules in (True, False):
        narrow, wide = movement(64, rules), movement(256, rules)
        growth[rules] = [after / before for before, after in zip(narrow, wide, strict=True)]
    assert all(0.6 < change < 1.6 for change in growth[True]), growth
    assert growth[False][1] > 1.5 * growth[True][1], growth


def test_the_transfer_rules_know_every_matrix_whose_fan_in_is_the_width():
    narrow, wide = dit_of(64), dit_of(192)
    hidden = {id(layer) for layer, _ in narrow.muon_params()}
    wider = dict(wide.named_modules())
    grows = {
        name
        for name, layer in narrow.named_modules()
        if isinstance(layer, torch.nn.Linear)
        and id(layer) not in hidden
        and wider[name].in_features == 3 * layer.in_features
    }
    assert grows == set(WIDTH_FAN_IN)
    scales = transfer_scales(wide, 64, 1)
    assert scales[id(wide.cond_in.weight)] == pytest.approx(1 / 3)
    assert scales[id(wide.blocks[0].mlp_in.weight)] == pytest.approx(3**-0.5)
    assert scales[id(wide.blocks[0].modulation)].flatten().tolist() == [1.0, 0.5, 1.0, 0.5]
    assert id(wide.patch_embed.weight) not in scales and id(wide.blocks[0].text_kv.weight) not in scales


def test_without_transfer_rules_a_step_is_what_it_was():
    noisy, target, text, pooled = batch_of()
    ended = []
    for scales in (None, transfer_scales(dit_of(64), 0, 0), "same"):
        dit = dit_of(64)
        chosen = transfer_scales(dit, 64, 2) if scales == "same" else scales
        assert not chosen
        optimizer = build_muon(dit.muon_params(), dit, DiTRun(), chosen)
        assert len(optimizer.param_groups) == 3
        (dit(noisy, text, pooled, (4, 4, 4)) - target).square().mean().backward()
        optimizer.step()
        ended.append(list(dit.parameters()))
    assert all(torch.equal(a, b) for other in ended[1:] for a, b in zip(ended[0], other, strict=True))


def test_rates_by_width_need_muon():
    with pytest.raises(ValueError, match="base_width and base_depth need --optimizer muon; got adamw"):
        check_formats(DiTRun(optimizer="adamw", base_width=64))


@pytest.mark.parametrize("width", [64, 256])
def test_planned_flops_are_within_1_percent_of_the_counter(width):
    dit = dit_of(width)
    noisy, target, text, pooled = batch_of(1)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        (dit(noisy, text, pooled, (4,)) - target).square().mean().backward()
    assert training_flops(dit.dit_config, 8, 4) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_no_two_depths_of_the_ladder_share_a_width_and_heads_divide_by_8():
    assert len({shape.width for shape in SHAPES}) == len({shape.depth for shape in SHAPES}) == len(SHAPES)
    assert all(shape.width == 64 * shape.depth and shape.width % shape.head_dim == 0 for shape in SHAPES)
    assert all(shape.width // shape.head_dim % 8 == 0 for shape in SHAPES[2:])


@pytest.fixture(scope="module")
def plan():
    """A plan from nothing but a preset: its VAE, text encoder and data are not there."""
    run = replace(dit_tiny(), data=Path("nowhere"), held_out=Path("nowhere"))
    options = ScaleOptions(
        budgets=(1e13, 1e14, 1e15), grids=("isoflop", "rate"), target_flops=4e15, target_depth=6, data_clips=10**6
    )
    return plan_scaling(run, options)


def test_a_plan_spends_its_budgets_and_its_batch_follows_the_tokens(plan):
    isoflop = [rung for rung in plan.rungs if "isoflop" in rung.grids]
    assert {rung.budget for rung in isoflop} == {1e13, 1e14, 1e15, 4e15}
    assert all(rung.flops == pytest.approx(rung.budget, rel=0.01) for rung in isoflop)
    few, many = (next(r for r in isoflop if r.depth == 1 and r.budget == budget) for budget in (1e13, 1e15))
    growth = math.log(sum(many.batch_sizes) / sum(few.batch_sizes)) / math.log(many.tokens / few.tokens)
    assert growth == pytest.approx(0.383, abs=0.01)
    assert [rung.name for rung in plan.rungs if rung.held_out] == ["d6w384-4e15"]
    assert sum(rung.seed == 1 for rung in isoflop) == 4 and all(r.budget == 1e13 for r in isoflop if r.seed)
    assert {(r.depth, r.width) for r in plan.rungs if "rate" in r.grids} == {
        (d, w) for d in (2, 4) for w in (64, 128, 256)
    }
    assert any("more than once" in line for line in plan.warnings) == any(rung.epochs > 1 for rung in plan.rungs)


def test_a_plan_is_read_as_it_was_written_and_its_hashes_tell_rungs_apart(plan, tmp_path):
    plan.write(path := tmp_path / "plan.json")
    assert ScalingPlan.read(path) == plan
    assert len({plan.hash_of(rung) for rung in plan.rungs}) == len(plan.rungs)
    moved = replace(plan, base=replace(plan.base, data=Path("elsewhere"), out=Path("there")))
    assert moved.hash_of(plan.rungs[0]) == plan.hash_of(plan.rungs[0])
    run = plan.run_of(plan.rungs[0], tmp_path)
    assert run_from_json(run_to_json(run)) == run
    from training.command import parse_run

    assert parse_run("dit", command_words(run)) == run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (5,)}, "a rung must have a depth of the ladder"),
        ({"budgets": ()}, "budgets must be numbers above 0"),
        ({"budgets": (float("nan"),)}, "budgets must be numbers above 0"),
        ({"grids": ("isoflops",)}, "grids must be some of isoflop"),
        ({"gpus": "64H100"}, "gpus must be a number, x, and one of"),
        ({"mfu": 40.0}, "mfu must be above 0 and at most 1"),
        ({"budgets": (1e6,)}, "a plan must have runs of 30 steps"),
        ({"target_flops": 1e12}, "target_flops must be above the other runs'"),
        ({"rate_widths": (100,)}, "rate_widths must be multiples of 32"),
        ({"decay_fraction": 0.99}, "warmup_fraction and decay_fraction must be at most 1"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_in_one_sentence(options, message):
    with pytest.raises(ValueError, match=message) as refused:
        plan_scaling(dit_tiny(), ScaleOptions(**options))
    assert "\n" not in str(refused.value)


def test_a_file_that_is_no_plan_or_a_newer_one_is_refused(tmp_path):
    path = tmp_path / "plan.json"
    for text, message in (("[1, 2", "a scaling plan must be a JSON file"), ('{"version": 9}', "of version 1")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            ScalingPlan.read(path)
    path.write_text(json.dumps({"version": 1, "base": {"unknown": 1}, "rungs": [], "assumptions": [], "warnings": []}))
    with pytest.raises(ValueError, match="plan again"):
        ScalingPlan.read(path)


def test_branched_rungs_share_a_trunk_its_batch_and_its_rate():
    branched = plan_scaling(dit_tiny(), ScaleOptions(branch=True, small_seeds=1))
    for depth in (1, 2, 3, 4):
        rungs = sorted((r for r in branched.rungs if r.depth == depth), key=lambda rung: rung.steps)
        assert len({(r.trunk, r.batch_sizes, r.lr, r.warmup_steps, r.ema_decay) for r in rungs}) == 1 and rungs[0].trunk
        assert all(r.flops == pytest.approx(r.budget, rel=0.02) for r in rungs)
        assert [r.steps - r.decay_steps for r in rungs] == sorted(r.steps - r.decay_steps for r in rungs)


def test_the_cost_model_agrees_with_published_runs():
    rows = compare_costs()
    assert {row.unit for row in rows} == {"PF-days", "FLOPs", "GPU-hours", "dollars"}
    assert all(0.85 < row.ratio < 1.1 for row in rows), [(row.name, row.unit, row.ratio) for row in rows]


def test_a_cluster_is_read_and_a_model_that_does_not_fit_is_told():
    cluster = Cluster.parse("64xh100")
    cost = run_cost(cluster.count * 3600 * 989e12 * cluster.mfu, cluster)
    assert cost.wall_hours == pytest.approx(1) and cost.gpu_hours == pytest.approx(64) and cost.dollars == 128
    assert run_cost(PETAFLOP_DAY, cluster).petaflop_days == 1
    large = DiTConfig(depth=64, width=4096, head_dim=128)
    assert not planned_cost(1e24, large, Cluster.parse("1xH100"), 8, 4000).fits
    assert planned_cost(1e24, large, Cluster.parse("64xH100"), 64, 4000).fits


def runs_on(E, A, alpha, B, beta):
    N, C = np.repeat([5e4, 4e5, 1.3e6, 3e6, 1e7], 4), np.tile([1e13, 1e14, 1e15, 1e16], 5)
    return N, C / 6 / N, E + A * N**-alpha + B * (C / 6 / N) ** -beta


@pytest.mark.parametrize("numbers", SURFACES)
def test_known_exponents_are_recovered_within_2_percent(numbers):
    E, _, alpha, _, beta = numbers
    surface = fit_surface(*runs_on(*numbers))
    assert (surface.alpha, surface.beta, surface.E) == pytest.approx((alpha, beta, E), rel=0.02)
    assert surface.size_exponent == pytest.approx(beta / (alpha + beta), rel=0.02)


def test_one_run_that_failed_does_not_move_the_law():
    N, D, L = runs_on(*SURFACES[0])
    L[7] *= 1.3
    surface = fit_surface(N, D, L)
    assert (surface.alpha, surface.beta) == pytest.approx((0.34, 0.28), rel=0.02)


def test_the_minimum_of_a_parabola_is_biased_where_the_surface_is_not():
    E, A, alpha, B, beta = 0.1, 30, 0.6, 20, 0.2
    N = np.logspace(4, 8, 7)
    true = ((alpha * A) / (beta * B)) ** (1 / (alpha + beta)) * (1e15 / 6) ** (beta / (alpha + beta))
    loss = E + A * N**-alpha + B * (1e15 / 6 / N) ** -beta
    assert abs(math.log(isoflop_parabola(1e15, N, loss).parameters / true)) > 0.05
    N, C = np.tile(N, 3), np.repeat([1e14, 1e15, 1e16], len(N))
    surface = fit_surface(N, C / 6 / N, E + A * N**-alpha + B * (C / 6 / N) ** -beta)
    assert abs(math.log(optimum(surface, 1e15, lambda sizes: 6 * sizes).parameters / true)) < 0.02


def test_a_law_of_compute_is_recovered():
    C = np.logspace(13, 16, 6)
    law = fit_power_law(C, 0.3 + 500 * C**-0.25)
    assert (law.E, law.gamma) == pytest.approx((0.3, 0.25), rel=0.02)


def test_too_few_runs_or_a_nan_are_refused():
    N, D, L = runs_on(*SURFACES[0])
    with pytest.raises(ValueError, match="a surface needs 6 runs or more; got 5"):
        fit_surface(N[:5], D[:5], L[:5])
    with pytest.raises(ValueError, match="three sizes"):
        fit_surface(np.full(20, 1e6), D, L)
    with pytest.raises(ValueError, match="losses must be numbers above 0; 1 runs"):
        fit_surface(N, D, np.where(np.arange(20) == 3, np.nan, L))


def test_a_jump_is_told_from_a_slope():
    rng, compute = np.random.default_rng(0), np.logspace(13, 16, 12)
    noise = 0.02 * rng.standard_normal(12)
    jump = largest_jump(compute, (compute > 3e14) + noise)
    assert jump.probability < 0.02 and jump.size == pytest.approx(1, abs=0.2) and 1e14 < jump.after < 3e14
    assert largest_jump(compute, 0.3 * np.log10(compute) + noise).probability > 0.05
