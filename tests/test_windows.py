"""Long clips and loops: in which windows they are dreamed, what each looks back at, and how far they drift."""

from dataclasses import replace

import pytest
import torch

from dit.batching import Job
from dit.canvas import Canvas, blank
from dit.flow import interpolate
from dit.pipeline import Pipeline
from dit.request import Request
from dit.windows import Windows, beginning, cut_open, cuts_of, places_of, window_of


@pytest.fixture(scope="module")
def pipeline(tiny_model):
    return Pipeline.from_pretrained(tiny_model)


def painted(steps: int, *dreamed: tuple[int, int], circle: bool = False) -> Canvas:
    """Return a canvas on which stretches are dreamed and the rest is given."""
    level = torch.zeros(steps, 1, 1)
    for begin, end in dreamed:
        level[begin:end] = 1
    return Canvas(torch.zeros(1, steps, 1, 1), level, 8.0, periodic=circle)


@pytest.mark.parametrize("window", [3, 5, 9])
def test_at_every_look_windows_show_all_that_is_dreamed_and_not_much_more(window):
    inside = window - 1
    for steps in range(window, 40):
        for begin, end in {(0, steps), (1, steps), (steps // 3, steps // 2 + 1), (0, steps - 1), (steps // 2, steps)}:
            canvas = painted(steps, (begin, end))
            for look in range(12):
                cuts = cuts_of(canvas, window, look)
                shown = {cut + step for cut in cuts for step in range(0 if cut == 0 else 1, window)}
                assert set(range(begin, end)) <= shown and shown <= set(range(steps))
                assert len(cuts) <= (end - begin) // inside + 3
                assert all(cut >= begin - 1 - inside // 2 - 1 or cut == steps - window for cut in cuts)


def test_windows_are_cut_elsewhere_at_every_look():
    canvas, joins = painted(40, (0, 40)), set()
    for look in range(30):
        joins |= set(cuts_of(canvas, 9, look))
    assert joins == set(range(32))


def test_a_window_stands_in_the_middle_between_what_is_given():
    assert {tuple(cuts_of(painted(20, (10, 12)), 5, look)) for look in range(9)} == {(8,)}
    assert {tuple(cuts_of(painted(20, (10, 12)), 9, look)) for look in range(9)} == {(6,)}
    assert min(cut for look in range(9) for cut in cuts_of(painted(20, (10, 20)), 5, look)) == 7


def test_before_a_window_stands_what_was_told_or_given_last():
    def before(canvas, begun=None):
        return {cut: int(place[0]) for look in range(30) for cut, place in places_of(canvas, 5, look, begun)}

    whole = painted(30, (0, 30))
    assert set(before(whole).values()) == {0}  # the clip's first picture
    rest = painted(30, (5, 30))
    assert set(before(rest, whole).values()) == {0}  # that too, where the beginning has been dreamed
    assert {cut: min(cut, 4) for cut in before(rest)} == before(rest)  # the last of what was given
    behind = before(painted(30, (0, 20)))
    assert {cut: max(cut, 20) if cut else 0 for cut in behind} == behind  # what is given behind, but for the beginning
    told = before(whole.with_prompts([(0, "a"), (10, "b")]))
    assert {cut: 0 if cut < 11 else 11 for cut in told} == told  # since the hand-over to other words is over
    edited = replace(whole, denoise_mask=whole.denoise_mask / 2)
    assert all(cut == step for cut, step in before(edited).items())  # everything is known a little


def test_a_window_is_the_longest_of_training_that_a_clip_fills():
    assert [window_of(steps, [5, 9]) for steps in (5, 8, 9, 40)] == [5, 5, 9, 9]
    with pytest.raises(ValueError, match="at least 5"):
        window_of(4, [5, 9])


@torch.no_grad()
def test_a_long_clip_is_dreamed_around_its_first_picture_and_never_coded_again(pipeline):
    """The beginning as if it were all, then the rest in windows that begin with the same picture."""
    request = pipeline.resolve(Request(mode="long", prompt="a red ball", seconds=5.0, steps=3, seed=4))
    canvas = pipeline.paint(request)
    window = pipeline.window_for(request, canvas)
    assert beginning(canvas, window) and canvas.latent_frames > 2 * window
    seen = []
    coded, pipeline.vae.encode = pipeline.vae.encode, None
    try:
        looking = pipeline.looking
        pipeline.looking = lambda *args: lambda xs, levels: (seen.append((xs, levels)), looking(*args)(xs, levels))[1]
        (dream,) = pipeline.generate([request])
    finally:
        pipeline.vae.encode = coded
        del pipeline.looking
    short = pipeline.resolve(Request(prompt="a red ball", seconds=(4 * window - 3) / 8, steps=3, seed=4))
    (alone,) = pipeline.generate([short])
    assert torch.equal(alone.latents, dream.latents[:, :window])
    for (x,), (level,) in seen[3:]:
        assert x.shape[1] == window and torch.equal(x[:, :1], dream.latents[:, :1]) and not level[0].any()


def test_behind_the_longest_clip_of_training_half_of_the_noise_comes_again():
    def noise(steps, circle=False):
        canvas = replace(blank((16, steps, 8, 8), 8.0), periodic=circle)
        return Job(0, Request(prompt="x", seed=3), canvas, 5, 9).noise()

    long = noise(60)
    for steps in (5, 9, 20):
        assert torch.equal(noise(steps), long[:, :steps])  # a longer clip begins with the same noise
    assert torch.equal(noise(60, circle=True)[:, :9], long[:, :9]) and not torch.equal(noise(60, circle=True), long)
    for step in range(9, 60):
        own = long[:, step].flatten()
        alike = [float(own @ long[:, other].flatten() / own.numel()) for other in range(9)]
        assert float(own.var()) == pytest.approx(1, abs=0.2)
        assert alike.index(max(alike)) == 1 + (step - 1) % 8 and max(alike) == pytest.approx(0.5**0.5, abs=0.12)


@torch.no_grad()
def test_a_circle_is_seen_in_windows_that_are_cut_elsewhere_at_every_look(pipeline):
    seen = []

    def look(part, start, stretch):
        def velocity(xs, levels):
            seen.append(xs[0])
            return [x.square() - level for x, level in zip(xs, levels, strict=True)]

        return velocity

    x, level = torch.randn(4, 7, 8, 8), torch.full((7, 8, 8), 0.5)
    noise, canvas = torch.randn_like(x), replace(blank((4, 7, 8, 8), 8.0), periodic=True)
    ring = Windows(look, pipeline.vae, canvas, 5, noise)
    cuts = []
    for _ in range(30):
        before = ring.clean
        (velocity,) = ring([x], [level])
        assert torch.allclose(velocity, x.square() - level, atol=1e-6)  # no place is treated unlike another
        assert len(seen) % 2 == 0
        for window in seen[-2:]:
            (cut,) = (step for step in range(7) if torch.equal(window[:, 1], x[:, step]))
            assert torch.equal(window[:, 1:], x[:, (cut + torch.arange(4)) % 7])
            last = pipeline.vae.linear_preview(before[None, :, [cut - 1, cut - 1]])[:, :, -1:]
            picture = interpolate(pipeline.vae.encode(last)[0], noise[:, [cut - 1]], level[:1])
            assert torch.allclose(window[:, :1], picture, atol=1e-5)
            cuts.append(cut)
    assert set(cuts) == set(range(7))


def test_no_seam_stays_where_each_window_changes_what_is_at_its_ends(pipeline):
    """A look that spoils the two ends of each window leaves a seam where windows are always cut, and none where not."""

    def velocity(xs, levels):
        spoilt = xs[0] - 1.0  # the velocity to a circle of ones
        spoilt[:, 1] -= 1.0
        spoilt[:, -1] += 1.0
        return [spoilt]

    x, canvas = torch.zeros(4, 4, 8, 8), replace(blank((4, 4, 8, 8), 8.0), periodic=True)
    ring = Windows(lambda *part: velocity, pipeline.vae, canvas, 5, torch.zeros_like(x))
    for time in torch.linspace(1, 0, 41)[:-1]:
        (slope,) = ring([x], [torch.full((4, 8, 8), float(time))])
        x = x - slope / 40
    joins = (x - x.roll(1, 1)).abs().mean((0, 2, 3))
    assert joins.max() < 0.1  # of 1.3 where windows are always cut at one place


@torch.no_grad()
def test_a_circle_is_cut_open_where_least_changes(pipeline):
    ring = torch.randn(4, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    twice = pipeline.vae.linear_preview(ring.repeat(1, 2, 1, 1)[None])[0]  # step t shows frames 4 t - 3 to 4 t
    joins = {step: (twice[:, 4 * step - 3] - twice[:, 4 * step - 4]).square().mean() for step in range(1, 7)}
    calmest = min(joins, key=joins.get)
    assert torch.equal(cut_open(ring, pipeline.vae), ring.roll(-calmest, 1))


def test_a_still_clip_drifts_nowhere_and_a_fading_one_does():
    from training.evaluation.bench import measure_drift
    from training.evaluation.judge import Judge

    eye = Judge(width=8).eval()
    still = torch.rand(3, 1, 64, 64).expand(-1, 51, -1, -1)
    assert all(value == pytest.approx(0, abs=1e-5) for value in measure_drift(still, eye).values())
    fading = measure_drift(still * torch.linspace(1, 0.3, 51)[:, None, None], eye)
    assert all(fading[name] > 0.01 for name in ("colour", "contrast", "sharpness"))


def test_others_ways_of_long_clips_can_be_measured_beside_ours(pipeline):
    from training.evaluation.bench import sample_with_reencoding

    request = pipeline.resolve(Request(mode="long", prompt="a red ball", seconds=5.0))
    clip = sample_with_reencoding(pipeline, request)
    (dream,) = pipeline.generate([request])
    ours = pipeline.pixels(dream)
    assert clip.shape == ours.shape
    assert torch.allclose(clip[:, :17], ours[:, :17], atol=1e-5) and not torch.equal(clip, ours)
