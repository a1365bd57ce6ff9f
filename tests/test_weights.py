"""Strict loading: what is wrong with a model folder is said by name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dit.model import DiT
from dit.pipeline import SETTINGS, Pipeline
from vae.weights import CONFIG, WEIGHTS, WeightsError, load_strictly


@pytest.fixture
def folder(tiny_model, tmp_path):
    return shutil.copytree(tiny_model / "transformer", tmp_path / "transformer")


def change(folder, act):
    tensors = load_file(folder / WEIGHTS)
    act(tensors)
    save_file(tensors, folder / WEIGHTS)


def test_a_whole_model_loads_as_it_was_saved(tiny_model):
    model = load_strictly(DiT, tiny_model / "transformer")
    stored = load_file(tiny_model / "transformer" / WEIGHTS)
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())
    assert not model.training


def test_weights_stored_in_16_bits_load_as_float32(folder):
    change(folder, lambda tensors: tensors.update({name: value.half() for name, value in tensors.items()}))
    assert load_strictly(DiT, folder).dtype == torch.float32


def test_a_checkpoint_with_a_missing_key_is_refused(folder):
    change(folder, lambda tensors: tensors.pop("proj_out.weight"))
    with pytest.raises(WeightsError, match=r"the weight 'proj_out.weight' is missing"):
        load_strictly(DiT, folder)


def test_a_checkpoint_with_an_extra_key_is_refused(folder):
    change(folder, lambda tensors: tensors.update({"blocks.9.attn_out": torch.zeros(3)}))
    with pytest.raises(WeightsError, match=r"the weight 'blocks.9.attn_out' is one too many"):
        load_strictly(DiT, folder)


def test_a_checkpoint_with_a_misshapen_key_is_refused(folder):
    change(folder, lambda tensors: tensors.update({"proj_out.bias": torch.zeros(3)}))
    with pytest.raises(WeightsError, match=r"the weight 'proj_out.bias' must be \(16,\); got \(3,\)"):
        load_strictly(DiT, folder)


def test_a_truncated_checkpoint_is_refused(folder):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="is damaged"):
        load_strictly(DiT, folder)


def test_a_missing_file_is_named(folder):
    (folder / WEIGHTS).unlink()
    with pytest.raises(WeightsError, match=f"must hold {WEIGHTS}"):
        load_strictly(DiT, folder)
    (folder / CONFIG).unlink()
    with pytest.raises(WeightsError, match=f"must hold {CONFIG}"):
        load_strictly(DiT, folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"depth": 2, "width": 65}', '{"depth": "two"}'])
def test_a_config_that_describes_no_model_is_refused(folder, text):
    (folder / CONFIG).write_text(text)
    with pytest.raises(WeightsError):
        load_strictly(DiT, folder)


def test_a_folder_that_is_no_model_of_ours_is_refused(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    settings = json.loads((folder / SETTINGS).read_text())
    del settings["formats"]
    (folder / SETTINGS).write_text(json.dumps(settings))
    with pytest.raises(WeightsError, match="does not say what the model was trained for: 'formats'"):
        Pipeline.from_pretrained(folder)
