"""Strict loading: errors name what is wrong with a model folder, and folders with old names load."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.registry import DEFAULT_MODEL, model_folder
from dit.model import DiT
from dit.pipeline import Pipeline
from dit.settings import SETTINGS
from vae.model import VideoVAE
from vae.weights import (
    CONFIG,
    ORIGINAL_HEADER,
    WEIGHTS,
    WeightsError,
    current_name,
    hash_of_file,
    load_strictly,
    original_name,
)

# The names of version 0.1, in the order of the state dict.
OLD_CONFIG = {"head_dim": "head_width", "text_dim": "words_width", "mlp_ratio": "expansion", "rope_theta": "theta"}
OLD_KEYS = """
embed.weight embed.bias whereabouts.weight condition.level.0.weight condition.level.0.bias condition.level.2.weight
condition.level.2.bias condition.caption.0.weight condition.caption.0.bias condition.caption.1.weight
condition.caption.1.bias condition.format.0.weight condition.format.0.bias condition.format.2.weight
condition.format.2.bias entry.weight entry.bias modulation.weight modulation.bias BLOCKS exit_scale.weight
exit_scale.bias exit.weight exit.bias
"""
OLD_BLOCK_KEYS = """
query_scale key_scale modulation near qkv.weight words.weight words_norm.weight words_norm.bias out.weight widen.weight
narrow.weight
"""


@pytest.fixture
def folder(tiny_model, tmp_path):
    return shutil.copytree(tiny_model / "transformer", tmp_path / "transformer")


def change(folder, act):
    tensors = load_file(folder / WEIGHTS)
    act(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def old_key_of_each(model):
    """Return the key of version 0.1 of each key of a DiT."""
    blocks = " ".join(f"blocks.{n}.{key}" for n in range(len(model.blocks)) for key in OLD_BLOCK_KEYS.split())
    return dict(zip(model.state_dict(), OLD_KEYS.replace("BLOCKS", blocks).split(), strict=True))


def give_old_names(folder, old_key):
    """Write a DiT's folder as version 0.1 wrote it."""
    change(folder, lambda tensors: [tensors.update({old_key[name]: tensors.pop(name)}) for name in list(tensors)])
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({OLD_CONFIG.get(name, name): value for name, value in config.items()}))


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
    with pytest.raises(WeightsError, match=r"the weight 'blocks.9.attn_out' is unexpected"):
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


def test_a_folder_with_the_names_of_version_0_1_loads_as_the_same_model(folder):
    model = load_strictly(DiT, folder)
    give_old_names(folder, old_key_of_each(model))
    assert "exit.weight" in load_file(folder / WEIGHTS) and "words_width" in json.loads((folder / CONFIG).read_text())
    old = load_strictly(DiT, folder)
    assert old.dit_config == model.dit_config
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in old.state_dict().items())


def test_a_folder_with_an_old_and_a_current_name_for_one_value_is_refused(folder):
    change(folder, lambda tensors: tensors.update({"exit.weight": tensors["proj_out.weight"].clone()}))
    with pytest.raises(WeightsError, match=r"the weight 'exit.weight' is unexpected"):
        load_strictly(DiT, folder)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"head_width": 32}))
    with pytest.raises(WeightsError, match="gives both head_dim and head_width, its old name"):
        load_strictly(DiT, folder)


def test_an_old_name_fits_whole_parts_of_a_key_and_any_number():
    renames = {"exit": "proj_out", "blocks.*.out": "blocks.*.attn_out"}
    names = {"exit.bias": "proj_out.bias", "exit_scale.bias": "exit_scale.bias", "blocks.12.out": "blocks.12.attn_out"}
    for old, new in names.items():
        assert current_name(old, renames) == new and original_name(new, renames) == old
    assert current_name("blocks.x.out.weight", renames) == "blocks.x.out.weight"


def test_renaming_the_keys_of_a_weights_file_does_not_change_its_hash(folder):
    old_key = old_key_of_each(load_strictly(DiT, folder))
    give_old_names(folder, old_key)
    old, before = (folder / WEIGHTS).read_bytes(), hash_of_file(folder / WEIGHTS)
    end = 8 + int.from_bytes(old[:8], "little")
    header = json.loads(old[8:end])
    renamed = {name: header[old_name] for name, old_name in old_key.items()}
    metadata = header["__metadata__"] | {ORIGINAL_HEADER: old[8:end].decode()}
    text = json.dumps({"__metadata__": metadata} | renamed).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + old[end:])
    assert set(load_file(folder / WEIGHTS)) == set(old_key)
    assert load_strictly(DiT, folder) and hash_of_file(folder / WEIGHTS) == before
    values = bytearray((folder / WEIGHTS).read_bytes())
    values[-1] ^= 1
    (folder / WEIGHTS).write_bytes(values)
    assert hash_of_file(folder / WEIGHTS) != before


def test_latents_of_version_0_1_are_known_as_those_of_the_shipped_vae():
    vae = load_strictly(VideoVAE, model_folder(DEFAULT_MODEL) / "vae")
    assert vae.encoder_hash() == "05ce689de884d495"  # in the names of old data sets and beside old clips
