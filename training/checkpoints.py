"""Training checkpoints: whole on disk or not there, read back before they count, and verified when loaded."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vae.files import sync
from vae.weights import current_name

# Names in checkpoints of version 0.1, and what they are called now.
RENAMED_PARTS = {
    "average": "ema",
    "critic": "discriminator",
    "critic_optimizer": "discriminator_optimizer",
    "pair": "towers",
}
STATE = "state.json"


class Checkpoints:
    """The checkpoints of a run, `folder`/step-NNNNNNNN; the newest `keep` stay."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def save(self, step: int, tensors: dict[str, dict[str, Tensor]], notes: dict) -> Path:
        """Write a checkpoint of named groups of tensors, and of notes that JSON can hold.

        It is written under a temporary name, read back and compared, then renamed; only then are old ones removed.
        Raises OSError if what is read back differs.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        final, temporary = self.folder / f"step-{step:08d}", self.folder / f"step-{step:08d}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        hashes = {}
        for name, group in tensors.items():
            path = temporary / f"{name}.safetensors"
            save_file({key: value.detach().cpu().contiguous() for key, value in group.items()}, path)
            hashes[name] = _sha256(path)
            sync(path)
        (temporary / STATE).write_text(json.dumps({"step": step, "sha256": hashes, **notes}))
        sync(temporary / STATE, temporary)
        if not self.is_intact(temporary):
            raise OSError(f"a checkpoint must read back as it was written; {temporary} does not, so check the disk")
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        sync(self.folder)
        for old in (*self.paths()[: -self.keep], *self.folder.glob("*.tmp")):
            shutil.rmtree(old)
        return final

    def is_intact(self, checkpoint: Path) -> bool:
        """Return whether every file of a checkpoint has the hash that was noted when it was written."""
        try:
            hashes = json.loads((checkpoint / STATE).read_text())["sha256"]
            return all(_sha256(checkpoint / f"{name}.safetensors") == found for name, found in hashes.items())
        except (OSError, ValueError, KeyError):
            return False

    def paths(self) -> list[Path]:
        """List the checkpoints, oldest first, without the unfinished ones, which end in .tmp."""
        return sorted(path for path in self.folder.glob("step-*") if path.suffix != ".tmp")

    def load_latest(self) -> tuple[dict, dict[str, dict[str, Tensor]]] | None:
        """Read the newest intact checkpoint as (notes, groups of tensors); None if there is none."""
        for checkpoint in reversed(self.paths()):
            if self.is_intact(checkpoint):
                notes = json.loads((checkpoint / STATE).read_text())
                names: list[str] = list(notes["sha256"])
                groups = {name: load_file(checkpoint / f"{name}.safetensors") for name in names}
                return notes, {RENAMED_PARTS.get(name, name): group for name, group in groups.items()}
            print(f"checkpoint {checkpoint} is damaged: going back to the one before", file=sys.stderr)
        return None


def state_tensors(part) -> dict[str, Tensor]:
    """Return the state of a module, an optimizer or an EMAModel as named tensors."""
    if isinstance(part, nn.Module):
        return part.state_dict()
    if hasattr(part, "shadow_params"):
        shadows = {str(index): value for index, value in enumerate(part.shadow_params)}
        return shadows | {"optimization_step": torch.tensor(part.optimization_step)}
    state = part.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value) for index, group in state.items() for name, value in group.items()
    }


def load_state_tensors(part, tensors: dict[str, Tensor]) -> None:
    """Load what `state_tensors` returned, also under the names of an older version of the module."""
    if isinstance(part, nn.Module):
        renames = {} if tensors.keys() == part.state_dict().keys() else getattr(part, "old_weight_names", {})
        part.load_state_dict({current_name(name, renames): value for name, value in tensors.items()}, strict=True)
    elif hasattr(part, "shadow_params"):
        part.optimization_step = int(tensors["optimization_step"])
        for index, value in enumerate(part.shadow_params):
            value.copy_(tensors[str(index)])
    else:
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
