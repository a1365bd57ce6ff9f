"""The prompt encoder that is trained with the transformer, the camera input, and training in bf16."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from captioning.camera import CAMERA_AXES, CAMERA_VALUES
from captioning.prompt_encoder import PromptEncoder
from captioning.text_encoder import encode_prompts, load_text_encoder, train_tokenizer
from dit.estimate import CostModel
from dit.flops import count_parameters, forward_flops
from dit.flow import make_scheduler
from dit.model import DiT, DiTConfig
from dit.packing import pack
from dit.pipeline import Pipeline
from dit.request import Request
from dit.settings import Settings
from training.config import DiTRun
from training.examples import mean_per_latent_frame, names_camera, sample_time
from training.low_precision import LowPrecisionCopy
from training.text_conditioned import TextConditionedDiT, camera_loss
from vae.model import VideoVAE

PROMPTS = ["a red ball bounces", "the blue cube spins while the camera orbits left", ""]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(PROMPTS, 300, 96)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    torch.manual_seed(0)
    return randomized(PromptEncoder(len(tokenizer), 96, 32, 2, 2, tokenizer.pad_token_id)).eval()


def randomized(model):
    for value in model.parameters():
        if not value.any():
            torch.nn.init.normal_(value, std=0.1)
    return model


def camera_dit() -> DiT:
    torch.manual_seed(0)
    config = DiTConfig(depth=2, width=64, head_dim=32, channels=4, text_dim=32, camera=True)
    return randomized(DiT.from_dit_config(config)).eval()


def packed(camera=None, frames: int = 3):
    torch.manual_seed(1)
    latents = [torch.randn(4, frames, 4, 4), torch.randn(4, 1, 4, 4)]
    sigmas = [torch.full(clip.shape[1:], 0.5) for clip in latents]
    cameras = None if camera is None else [camera, torch.zeros(1, CAMERA_VALUES)]
    return pack(latents, sigmas, [8.0, 8.0], (1, 2, 2), cameras=cameras)


def test_a_prompt_is_encoded_the_same_alone_or_with_longer_ones(tokenizer, encoder):
    together = encode_prompts(PROMPTS, tokenizer, encoder)
    for number, prompt in enumerate(PROMPTS):
        alone = encode_prompts([prompt], tokenizer, encoder)
        own = together.token_embeddings.split(together.token_counts)[number]
        torch.testing.assert_close(own, alone.token_embeddings, atol=1e-5, rtol=1e-5)  # sums over other paddings
        torch.testing.assert_close(together.pooled[number], alone.pooled[0], atol=1e-5, rtol=1e-5)


def test_every_word_reaches_every_other(tokenizer, encoder):
    one, other = (encode_prompts([text], tokenizer, encoder) for text in ("a red ball", "a red cube"))
    assert not torch.equal(one.token_embeddings[1], other.token_embeddings[1])  # a causal tower's would be equal


def test_a_saved_encoder_is_loaded_by_its_class(tmp_path, tokenizer, encoder):
    encoder.save_pretrained(tmp_path / "text_encoder", safe_serialization=True)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded_tokenizer, loaded = load_text_encoder(tmp_path)
    assert isinstance(loaded, PromptEncoder)
    before, after = (encode_prompts(PROMPTS, *pair) for pair in ((tokenizer, encoder), (loaded_tokenizer, loaded)))
    assert torch.equal(before.token_embeddings, after.token_embeddings) and torch.equal(before.camera, after.camera)


def test_a_prompt_that_names_no_camera_gives_zeros(tokenizer, encoder):
    text = encode_prompts(PROMPTS, tokenizer, encoder)
    assert text.camera.shape == (len(PROMPTS), CAMERA_VALUES)
    known = text.camera[:, -1]
    assert set(known.tolist()) <= {0.0, 1.0} and not text.camera[known == 0].any()


def test_the_camera_changes_the_clip_it_is_given_to_and_no_other():
    model, text, pooled = camera_dit(), torch.randn(5, 32), torch.randn(2, 32)
    moving = torch.zeros(3, CAMERA_VALUES)
    still = packed(moving)
    moving = moving.clone()
    moving[:, CAMERA_AXES.index("yaw")], moving[:, -1] = 1, 1
    turned = packed(moving)
    before, after = (model(batch, text, pooled, (3, 2)) for batch in (still, turned))
    first = still.token_lens[0]
    assert not torch.allclose(before[:first], after[:first]) and torch.equal(before[first:], after[first:])
    assert torch.equal(before, model(replace(still, camera=None), text, pooled, (3, 2)))  # unknown is as if not asked


def test_the_camera_of_a_latent_frame_reaches_its_own_tokens_first():
    model = camera_dit()
    camera = torch.zeros(3, CAMERA_VALUES)
    camera[2] = 1
    batch = packed(camera)
    from dit.model import frame_of_token

    rows = batch.camera.index_select(0, frame_of_token(batch))
    assert torch.equal(rows[:, 0], (batch.position_ids[:, 0] == 2).float())
    assert model.camera_in is not None


def test_the_cost_of_a_camera_input_is_counted():
    model = camera_dit()
    assert count_parameters(model.dit_config) == sum(value.numel() for value in model.parameters())
    torch.manual_seed(0)
    latents, camera = torch.randn(4, 3, 4, 4), torch.zeros(3, CAMERA_VALUES)
    batch = pack([latents], [torch.full((3, 4, 4), 0.5)], [8.0], (1, 2, 2), cameras=[camera])
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(batch, torch.randn(5, 32), torch.randn(1, 32), (5,))
    assert counter.get_total_flops() == forward_flops(model.dit_config, 12, 5)


def test_only_captions_that_name_a_camera_teach_it():
    target = torch.tensor([[1.0, 0, 0, 0, 0, 0, 1], [5.0, 5, 5, 5, 5, 5, 0]])
    right = torch.tensor([[1.0, 0, 0, 0, 0, 0], [0.0] * 6])
    sure = torch.tensor([20.0, -20.0])
    assert float(camera_loss((right, sure), target)) < 1e-6
    assert float(camera_loss((right, -sure), target)) > 10
    assert float(camera_loss((right + 1, sure), target)) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("a red ball bounces", False),
        ("a red ball bounces while the camera pans left", True),
        ("一个红色的球在弹跳。镜头拉远。", True),
        ("一个红色的球在弹跳。", False),
    ],
)
def test_captions_that_name_the_camera_are_told_apart(caption, named):
    assert names_camera(caption) == named


def test_camera_velocities_are_averaged_over_the_frames_of_a_latent_frame():
    import numpy as np

    values = np.arange(9, dtype=np.float32)[None, :, None].repeat(6, 2)
    assert mean_per_latent_frame(values, 4)[0, :, 0].tolist() == [0, 2.5, 6.5]


def test_times_near_pure_noise_are_as_frequent_as_asked():
    run = DiTRun(high_noise_ratio=0.4, pure_noise_ratio=0.1, base_tokens=80)

    class Example:
        def __init__(self, number):
            self.uniform, self.time_uniform = (number * 0.6180339887) % 1, (number * 0.7548776662) % 1

    times = torch.stack([sample_time(Example(number), 80, run) for number in range(1, 4001)])  # type: ignore[arg-type]
    assert (times == 1).float().mean() == pytest.approx(0.1, abs=0.01)
    usual = torch.stack([sample_time(Example(number), 80, DiTRun()) for number in range(1, 4001)])  # type: ignore[arg-type]
    assert (times > 0.9).float().mean() > 3 * (usual > 0.9).float().mean()
    assert usual.max() < 1


def test_a_bf16_copy_gives_the_master_weights_nearly_the_gradient_of_fp32(tokenizer):
    torch.manual_seed(0)
    master = TextConditionedDiT(camera_dit(), randomized(PromptEncoder(len(tokenizer), 96, 32, 2, 2)))
    ids = torch.randint(3, 200, (2, 6))
    batch = packed(torch.zeros(3, CAMERA_VALUES))
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        low = LowPrecisionCopy(master, dtype)
        low.load_master()
        given = replace(batch, tokens=batch.tokens.to(dtype), camera=batch.camera.to(dtype))
        velocity, (camera, _) = low.model(given, ids, (6, 4))
        (velocity.float().square().mean() + camera.float().square().mean()).backward()
        low.take_gradients()
        gradients.append(torch.cat([value.grad.flatten() for value in master.parameters() if value.grad is not None]))
        assert all(value.grad.dtype == torch.float32 for value in master.parameters() if value.grad is not None)
        for value in master.parameters():
            value.grad = None
    cosine = torch.nn.functional.cosine_similarity(*gradients, dim=0)
    assert cosine > 0.99  # bf16 keeps eight bits


@pytest.fixture(scope="module")
def pipeline(tokenizer, encoder):
    vae = VideoVAE(channels=4, widths=(16, 32), encoder_blocks=(1, 1), decoder_blocks=(1, 1)).eval()
    settings = Settings(((64, 64, 9), (64, 64, 1)), fps=8.0, size=(64, 64), seconds=1.125, steps=2, guidance=2.0)
    return Pipeline(camera_dit(), randomized(vae), encoder, tokenizer, make_scheduler(48, 1.0), settings)


def test_an_estimate_counts_the_prompt_encoder_and_the_camera_input(pipeline):
    request = Request(prompt=PROMPTS[1])
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        (sample,) = pipeline.generate([request])
        pipeline.pixels(sample)
    assert CostModel.of(pipeline).cost(request).flops == counter.get_total_flops()


def test_a_prompt_that_names_a_camera_moves_it_and_one_that_names_none_leaves_it_open(pipeline, encoder):
    packs = []
    hook = pipeline.transformer.register_forward_pre_hook(lambda model, inputs: packs.append(inputs[0]))
    head = encoder.camera_head[-1]
    weight, bias = head.weight.clone(), head.bias.clone()
    try:
        with torch.no_grad():
            head.weight.zero_()
            for named in (-1.0, 1.0):
                head.bias.copy_(torch.tensor([0, 0, 0, 0, -1.0, 0, named]))
                list(pipeline.generate([Request(prompt=PROMPTS[1])]))
    finally:
        with torch.no_grad():
            head.weight.copy_(weight), head.bias.copy_(bias)
        hook.remove()
    open_, named = packs[0].camera, packs[-1].camera
    assert not open_.any()
    yaw = named[:, CAMERA_AXES.index("yaw")]
    assert (yaw == -1).all() and (named[:, -1] == 1).all() and len(named) == sum(packs[-1].frame_lens)


def test_clips_of_a_camera_model_are_the_same_alone_and_in_company(pipeline):
    requests = [Request(prompt=prompt, seed=seed) for seed, prompt in enumerate(PROMPTS[:2])]
    torch.set_num_threads(1)
    together = [sample.latents for sample in pipeline.generate(requests, pack_size=2)]
    for request, latents in zip(requests, together, strict=True):
        (alone,) = pipeline.generate([request])
        assert torch.equal(alone.latents, latents)
