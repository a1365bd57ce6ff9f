"""Long clips and loops: where windows start, which anchor each has, and how far clips drift."""

from dataclasses import replace

import pytest
import torch

from dit.batching import SamplingJob
from dit.canvas import Canvas, blank
from dit.denoiser import Denoiser, Segment
from dit.flow import interpolate
from dit.pipeline import Pipeline
from dit.request import Request
from dit.windows import cut_loop, longest_window, samples_first_window_alone, window_indices, window_starts


@pytest.fixture(scope="module")
def pipeline(tiny_model):
    return Pipeline.from_pretrained(tiny_model)


def canvas_with(latent_frames: int, *denoised: tuple[int, int], periodic: bool = False) -> Canvas:
    """Return a canvas on which these spans of latent frames are denoised and the rest is kept."""
    mask = torch.zeros(latent_frames, 1, 1)
    for begin, end in denoised:
        mask[begin:end] = 1
    return Canvas(torch.zeros(1, latent_frames, 1, 1), mask, 8.0, periodic=periodic)


@pytest.mark.parametrize("window", [3, 5, 9])
def test_windows_cover_all_denoised_frames_and_few_others(window):
    inner = window - 1
    for frames in range(window, 40):
        third, half = frames // 3, frames // 2
        for begin, end in {(0, frames), (1, frames), (third, half + 1), (0, frames - 1), (half, frames)}:
            canvas = canvas_with(frames, (begin, end))
            for evaluation in range(12):
                starts = window_starts(canvas, window, evaluation)
                covered = {start + offset for start in starts for offset in range(0 if start == 0 else 1, window)}
                assert set(range(begin, end)) <= covered and covered <= set(range(frames))
                assert len(starts) <= (end - begin) // inner + 3
                assert all(start >= begin - 1 - inner // 2 - 1 or start == frames - window for start in starts)


def test_windows_start_elsewhere_at_every_evaluation():
    canvas, starts = canvas_with(40, (0, 40)), set()
    for evaluation in range(30):
        starts |= set(window_starts(canvas, 9, evaluation))
    assert starts == set(range(32))


def test_a_short_gap_between_kept_frames_is_in_the_middle_of_one_window():
    assert {tuple(window_starts(canvas_with(20, (10, 12)), 5, evaluation)) for evaluation in range(9)} == {(8,)}
    assert {tuple(window_starts(canvas_with(20, (10, 12)), 9, evaluation)) for evaluation in range(9)} == {(6,)}
    open_end = canvas_with(20, (10, 20))
    assert min(start for evaluation in range(9) for start in window_starts(open_end, 5, evaluation)) == 7


def test_the_anchor_is_the_frame_that_was_kept_or_prompted_last():
    def anchors(canvas, original=None):
        windows = (window for evaluation in range(30) for window in window_indices(canvas, 5, evaluation, original))
        return {start: int(indices[0]) for start, indices in windows}

    whole = canvas_with(30, (0, 30))
    assert set(anchors(whole).values()) == {0}  # the first frame of the clip
    rest = canvas_with(30, (5, 30))
    assert set(anchors(rest, whole).values()) == {0}  # also after the first window was sampled
    assert anchors(rest) == {start: min(start, 4) for start in anchors(rest)}  # the last kept frame
    suffix = anchors(canvas_with(30, (0, 20)))  # the kept frames come after; the first window has no anchor
    assert suffix == {start: max(start, 20) if start else 0 for start in suffix}
    prompted = anchors(whole.with_prompts([(0, "a"), (10, "b")]))
    assert prompted == {start: 0 if start < 11 else 11 for start in prompted}  # after the crossfade to prompt b
    edited = replace(whole, denoise_mask=whole.denoise_mask / 2)
    assert all(start == anchor for start, anchor in anchors(edited).items())  # every frame is partly known


def test_a_window_has_the_longest_trained_length_that_fits():
    assert [longest_window(frames, [5, 9]) for frames in (5, 8, 9, 40)] == [5, 5, 9, 9]
    with pytest.raises(ValueError, match="at least 5"):
        longest_window(4, [5, 9])


@torch.no_grad()
def test_a_long_clip_is_its_first_window_and_the_rest_around_that_ones_first_frame(pipeline, monkeypatch):
    request = pipeline.resolve(Request(mode="long", prompt="a red ball", seconds=5.0, steps=3, seed=4))
    canvas = pipeline.paint(request)
    window = pipeline.window_length(request, canvas)
    assert samples_first_window_alone(canvas, window) and canvas.latent_frames > 2 * window
    calls = []

    def recorded(self, segments, latents, sigmas, velocities=Denoiser.velocities):
        calls.append((latents, sigmas))
        return velocities(self, segments, latents, sigmas)

    with monkeypatch.context() as patch:
        patch.setattr(Denoiser, "velocities", recorded)
        patch.setattr(pipeline.vae, "encode", None)  # the anchor is a latent frame already
        (sample,) = pipeline.generate([request])
    short = pipeline.resolve(Request(prompt="a red ball", seconds=(4 * window - 3) / 8, steps=3, seed=4))
    (alone,) = pipeline.generate([short])
    assert torch.equal(alone.latents, sample.latents[:, :window])
    for (x,), (sigma,) in calls[3:]:
        assert x.shape[1] == window and torch.equal(x[:, :1], sample.latents[:, :1]) and not sigma[0].any()


def test_beyond_the_trained_length_noise_is_half_repeated():
    def noise(frames, periodic=False):
        canvas = replace(blank((16, frames, 8, 8), 8.0), periodic=periodic)
        return SamplingJob(0, Request(prompt="x", seed=3), canvas, 5, 9).noise()

    long, loop = noise(60), noise(60, periodic=True)
    for frames in (5, 9, 20):
        assert torch.equal(noise(frames), long[:, :frames])  # a longer clip begins with the same noise
    assert torch.equal(loop[:, :9], long[:, :9]) and not torch.equal(loop, long)
    for frame in range(9, 60):
        own = long[:, frame].flatten()
        correlations = [float(own @ long[:, other].flatten() / own.numel()) for other in range(9)]
        assert float(own.var()) == pytest.approx(1, abs=0.2)
        assert correlations.index(max(correlations)) == 1 + (frame - 1) % 8
        assert max(correlations) == pytest.approx(0.5**0.5, abs=0.12)


class KnownVelocity(Denoiser):
    """A windowed denoiser of a periodic canvas, whose velocity within a window is a given function."""

    def __init__(self, function, networks, canvas: Canvas, window: int, noise: torch.Tensor):
        super().__init__(networks, [Segment(Request(prompt="x"), canvas, noise)], window)
        self.function, self.windows = function, []

    def velocities(self, segments, latents, sigmas):
        self.windows += latents
        return [self.function(x, sigma) for x, sigma in zip(latents, sigmas, strict=True)]


@torch.no_grad()
def test_on_a_loop_every_window_begins_with_the_frame_before_it(pipeline):
    x, sigma = torch.randn(4, 7, 8, 8), torch.full((7, 8, 8), 0.5)
    noise, canvas = torch.randn_like(x), replace(blank((4, 7, 8, 8), 8.0), periodic=True)
    denoiser = KnownVelocity(lambda x, sigma: x.square() - sigma, pipeline.networks, canvas, 5, noise)
    starts = []
    for _ in range(30):
        denoised = denoiser.denoised
        (velocity,) = denoiser([x], [sigma])
        assert torch.allclose(velocity, x.square() - sigma, atol=1e-6)  # every frame is treated alike
        assert len(denoiser.windows) % 2 == 0
        for window in denoiser.windows[-2:]:
            (start,) = (frame for frame in range(7) if torch.equal(window[:, 1], x[:, frame]))
            assert torch.equal(window[:, 1:], x[:, (start + torch.arange(4)) % 7])
            last = pipeline.vae.linear_preview(denoised[None, :, [start - 1, start - 1]])[:, :, -1:]
            anchor = interpolate(pipeline.vae.encode(last)[0], noise[:, [start - 1]], sigma[:1])
            assert torch.allclose(window[:, :1], anchor, atol=1e-5)
            starts.append(start)
    assert set(starts) == set(range(7))


def test_windows_that_err_at_their_ends_leave_no_seam(pipeline):
    """A denoiser that errs at both ends of each window leaves a seam if windows always start at the same frame."""

    def function(x, sigma):
        velocity = x - 1.0  # towards latents of ones
        velocity[:, 1] -= 1.0
        velocity[:, -1] += 1.0
        return velocity

    x, canvas = torch.zeros(4, 4, 8, 8), replace(blank((4, 4, 8, 8), 8.0), periodic=True)
    denoiser = KnownVelocity(function, pipeline.networks, canvas, 5, torch.zeros_like(x))
    for sigma in torch.linspace(1, 0, 41)[:-1]:
        (velocity,) = denoiser([x], [torch.full((4, 8, 8), float(sigma))])
        x = x - velocity / 40
    changes = (x - x.roll(1, 1)).abs().mean((0, 2, 3))
    assert changes.max() < 0.1  # 1.3 if windows always start at the same frame


@torch.no_grad()
def test_a_loop_is_cut_where_the_change_is_smallest(pipeline):
    loop = torch.randn(4, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    twice = pipeline.vae.linear_preview(loop.repeat(1, 2, 1, 1)[None])[0]  # latent frame t holds frames 4 t - 3 to 4 t
    changes = {t: (twice[:, 4 * t - 3] - twice[:, 4 * t - 4]).square().mean() for t in range(1, 7)}
    smallest = min(changes, key=changes.__getitem__)
    assert torch.equal(cut_loop(loop, pipeline.vae), loop.roll(-smallest, 1))


def test_a_still_clip_has_no_drift_and_a_fading_one_has():
    from training.evaluation.bench import measure_drift
    from training.evaluation.judge import Judge

    judge = Judge(width=8).eval()
    still = torch.rand(3, 1, 64, 64).expand(-1, 51, -1, -1)
    assert all(value == pytest.approx(0, abs=1e-5) for value in measure_drift(still, judge).values())
    fading = measure_drift(still * torch.linspace(1, 0.3, 51)[:, None, None], judge)
    assert all(fading[name] > 0.01 for name in ("colour", "contrast", "sharpness"))


def test_long_clips_by_reencoding_can_be_compared_with_ours(pipeline):
    from training.evaluation.bench import sample_with_reencoding

    request = pipeline.resolve(Request(mode="long", prompt="a red ball", seconds=5.0))
    clip = sample_with_reencoding(pipeline, request)
    (sample,) = pipeline.generate([request])
    ours = pipeline.pixels(sample)
    assert clip.shape == ours.shape
    assert torch.allclose(clip[:, :17], ours[:, :17], atol=1e-5) and not torch.equal(clip, ours)
