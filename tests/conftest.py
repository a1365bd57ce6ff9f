"""Fixtures: tiny real components, made once."""

import os
import tempfile

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "true")
os.environ["LONGTAKE_HOME"] = tempfile.mkdtemp()  # where the certificate of this run is made
os.environ.update(dict.fromkeys([f"LONGTAKE_{name}" for name in ("CERTIFICATE", "KEY", "TRUST", "SIGN")], ""))

import pytest
import torch

import vae.torchvision_ops  # noqa: F401
from dit.model import DiT, DiTConfig


@pytest.fixture
def tiny_dit() -> DiT:
    """A DiT of two blocks whose last layers are not zero, so that every input matters to its output."""
    torch.manual_seed(0)
    model = DiT.from_dit_config(DiTConfig(depth=2, width=64, head_dim=32, channels=4, text_dim=24)).eval()
    for value in model.parameters():
        if not value.any():
            torch.nn.init.normal_(value, std=0.1)
    return model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """The folder of a whole model with fresh weights: two-block DiT, four-channel VAE, one-layer text tower."""
    from captioning.text_encoder import TextTower, train_tokenizer
    from dit.flow import make_scheduler
    from dit.pipeline import Pipeline
    from dit.settings import Settings
    from vae.model import VideoVAE

    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a red ball bounces", "the blue cube spins while the camera orbits left"], 300, 96)
    text = TextTower(len(tokenizer), 96, 24, 2, 1, tokenizer.eos_token_id, tokenizer.pad_token_id)
    vae = VideoVAE(channels=4, widths=(16, 32), encoder_blocks=(1, 1), decoder_blocks=(1, 1))
    dit = DiT.from_dit_config(DiTConfig(depth=2, width=64, head_dim=32, channels=4, text_dim=24))
    for module in (vae, dit):
        for value in module.parameters():
            if not value.any():
                torch.nn.init.normal_(value, std=0.1)
    formats = ((64, 64, 17), (64, 64, 9), (48, 64, 9), (64, 64, 1))
    settings = Settings(formats, fps=8.0, size=(64, 64), seconds=2.125, steps=3, guidance=2.0)
    pipeline = Pipeline(dit, vae, text, tokenizer, make_scheduler(80, 1.0), settings)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def longtake(tiny_model, capsys):
    """A function that runs a command and returns its exit code, standard output and standard error."""
    from app.cli import main

    def run(*argv):
        try:
            code = main([str(word) for word in argv])
        except SystemExit as stop:  # argparse's own
            code = stop.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def generate(longtake, tiny_model):
    """A function that runs `longtake generate` with the tiny model."""
    return lambda *argv: longtake("generate", *argv, "--model", tiny_model)


@pytest.fixture(scope="session")
def toy_upsampler():
    """An upsampler trained on a toy world; a test that changes it copies it first."""
    from tests.toy import train_toy_upsampler

    return train_toy_upsampler()


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with a dataset of six clips, train, and one of six held-out clips, test."""
    from training.config import WorldRun
    from training.dataset import make_world

    folder = tmp_path_factory.mktemp("world")
    for name, split in (("train", "train"), ("test", "test")):
        make_world(WorldRun(folder=folder / name, split=split, clips=(6,), workers=1))
    return folder


@pytest.fixture(scope="session")
def vae_run(world):
    from training.config import VAERun

    return VAERun(
        data=world / "train",
        held_out=world / "test",
        out=world / "vae",
        steps=4,
        batch_size=2,
        frames=5,
        widths=(16, 32),
        channels=4,
        encoder_blocks=(1, 1),
        decoder_blocks=(1, 1),
        adversarial_start=2,
        discriminator_width=8,
        validate_every=2,
        warmup_steps=1,
        decay_steps=1,
        checkpoint_minutes=0,
    )


@pytest.fixture(scope="session")
def parts(world, vae_run):
    """The reports of a VAE and a text tower, each trained for a few steps; their folders are in `world`."""
    from training.config import TextRun
    from training.train_text import train as train_text
    from training.train_vae import train as train_vae

    text = TextRun(
        data=world / "train",
        held_out=world / "test",
        out=world / "text",
        steps=2,
        batch_size=4,
        vocab_size=400,
        width=32,
        heads=2,
        layers=1,
        video_width=64,
        video_layers=1,
        validate_every=2,
    )
    return train_vae(vae_run), train_text(text)


@pytest.fixture(scope="session")
def trained_dit(world, parts):
    """A run of a DiT, trained, and the report that it returned; not to be changed."""
    from training.train_dit import train

    run = tiny_dit_run(world, world / "trained-dit")
    return run, train(run)


@pytest.fixture
def dit_run(world, parts, tmp_path):
    """A run of a DiT, not yet trained."""
    return tiny_dit_run(world, tmp_path / "dit")


def tiny_dit_run(world, out):
    """Return a run of a one-block DiT on the VAE and the text tower of `parts`."""
    from training.config import DiTRun

    return DiTRun(
        data=world / "train",
        held_out=world / "test",
        out=out,
        vae=world / "vae" / "vae",
        text_encoder=world / "text" / "text",
        formats=((64, 64, 17), (64, 64, 1)),
        batch_sizes=(2, 2),
        depth=1,
        steps=6,
        warmup_steps=2,
        decay_steps=2,
        validate_every=3,
        sample_every=6,
        sample_steps=2,
        validation_clips=2,
        ema_decay=0.9,
    )
