"""Load a model folder in diffusers' layout, ours or another maker's, without running code of the folder."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.modeling_utils import ModelMixin, no_init_weights
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from dit.adapters.call import CalledFamily, CalledPipeline
from dit.adapters.family import Family
from dit.adapters.pipeline import AdaptedPipeline
from dit.pipeline import Pipeline
from dit.settings import SETTINGS, Settings, hash_of_model, read_settings
from vae.weights import WeightsError, hash_of_file, read_json, weights_in

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers")  # whose classes a folder may name
FAMILIES = {  # modules of this package, and the families in them
    "wan": ("Wan", "WanImage", "WanVACE"),
    "ltx": ("LTX",),
    "hunyuan": ("HunyuanVideo",),
    "cogvideo": ("CogVideoX", "CogVideoXImage"),
    "mochi": ("Mochi",),
}


def load_model(folder: str | Path) -> Pipeline:
    """Load a model folder: ours strictly, another maker's by its family, or by its own call where it has none.

    Raises WeightsError for a folder that is damaged, has weights that are not safetensors, or wants code of its own.
    """
    folder = Path(folder)
    name = class_of(folder)
    if name == Pipeline.__name__:
        return Pipeline.from_pretrained(folder)
    inner = load_inner(folder)
    return adapt(inner, hash_of_folder(folder), folder)


def settings_of(folder: Path) -> Settings:
    """Return the defaults of a model folder; of another maker's, with examples of the sizes that it can make."""
    return read_settings(folder / SETTINGS) if is_ours(folder) else adapt(load_skeleton(folder), folder=folder).settings


def hash_of(folder: Path) -> str:
    """Return the hash of a model folder's weights, ours or another maker's."""
    return hash_of_model(folder) if is_ours(folder) else hash_of_folder(folder)


def adapt(inner: Any, folder_hash: str | None = None, folder: Path | None = None) -> AdaptedPipeline:
    """Return a loaded diffusers pipeline behind the interface of ours; a longtake.json in `folder` has its defaults."""
    family = family_of(type(inner).__name__)
    if family is None:
        pipeline: AdaptedPipeline = CalledPipeline(inner, CalledFamily(inner), folder_hash)
    else:
        pipeline = AdaptedPipeline(inner, family(inner), folder_hash)
    if folder and (folder / SETTINGS).is_file():
        pipeline.settings = read_settings(folder / SETTINGS)
    return pipeline


def is_ours(folder: str | Path) -> bool:
    """Whether a folder holds a model of this project."""
    return class_of(Path(folder)) == Pipeline.__name__


def class_of(folder: Path) -> str:
    """Return the pipeline class that a model folder names; raises WeightsError for one with Python code of its own."""
    name = read_json(folder / INDEX).get("_class_name")
    if not isinstance(name, str):
        raise WeightsError(f"{folder / INDEX} must name a class of diffusers; it wants Python code of its own: {name}")
    return name


@cache
def family_of(name: str) -> type[Family] | None:
    """Return the family of a pipeline class; None for one that is used through its own call."""
    for module, classes in FAMILIES.items():
        for family in classes:
            found = getattr(import_module(f"dit.adapters.{module}"), family)
            if name in found.pipelines:
                return found
    return None


def components(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (component, library, class) of a model folder.

    Raises WeightsError where one is not a class of diffusers or transformers, so would be code of the folder.
    """
    for name, value in read_json(folder / INDEX).items():
        if name.startswith("_") or not isinstance(value, list) or value[:1] == [None]:
            continue
        if len(value) != 2 or value[0] not in LIBRARIES or not isinstance(value[1], str):
            raise WeightsError(
                f"{folder / INDEX} must name classes of {' and '.join(LIBRARIES)} alone; {name} is {value}, and "
                "Python code of a folder is never run"
            )
        yield name, *value


def load_inner(folder: Path, dtype: torch.dtype | None = None) -> Any:
    """Load the diffusers pipeline of a folder: local files, safetensors only, no code of the folder."""
    name = class_of(folder)
    pipeline_class = getattr(diffusers, name, None)
    if not (isinstance(pipeline_class, type) and issubclass(pipeline_class, DiffusionPipeline)):
        raise WeightsError(f"a pipeline must be one that diffusers {diffusers.__version__} has; {folder} names {name}")
    for part, _, _ in components(folder):
        where = folder / part
        if not where.is_dir():
            raise WeightsError(f"{folder} must hold a folder {part}, as its {INDEX} says; it does not")
    try:
        pipe = pipeline_class.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=dtype or default_dtype(),
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError, ImportError) as error:
        raise WeightsError(f"{folder} cannot be loaded: {' '.join(str(error).split())[:400]}") from error
    pipe.set_progress_bar_config(disable=True)
    for part, model in pipe.components.items():
        if isinstance(model, torch.nn.Module):
            model.eval().requires_grad_(False)
        if isinstance(model, ModelMixin):
            check_complete(model, folder / part)
    return pipe


def load_skeleton(folder: Path) -> Any:
    """Load a folder's pipeline with diffusers' networks on the meta device and without those of transformers."""
    name, parts = class_of(folder), dict[str, Any]()
    for part, library, class_name in components(folder):
        found = getattr(import_module(library), class_name, None)
        if found is None:
            raise WeightsError(f"{folder} names the class {class_name}, which {library} does not have")
        if issubclass(found, ModelMixin):
            parts[part] = skeleton_of(found, read_json(folder / part / "config.json"))
        elif issubclass(found, (torch.nn.Module, PreTrainedModel)):
            parts[part] = None
        else:
            parts[part] = found.from_pretrained(folder / part, local_files_only=True, trust_remote_code=False)
    index = read_json(folder / INDEX)
    settings = {key: value for key, value in index.items() if not key.startswith("_") and not isinstance(value, list)}
    settings |= {key: None for key, value in index.items() if isinstance(value, list) and value[:1] == [None]}
    return getattr(diffusers, name)(**parts, **settings)


def skeleton_of(model_class: Any, config: Any) -> Any:
    """Return a diffusers network on the meta device."""
    with no_init_weights(), torch.device("meta"):
        return model_class.from_config(config).eval()


def check_complete(model: ModelMixin, folder: Path) -> None:
    """Raise WeightsError where a file lacks a weight of a loaded model, which diffusers would leave random."""
    stored: set[str] = set()
    for path in weights_in(folder):
        with safe_open(path, framework="pt") as weights:
            stored |= set(weights.keys())
    if missing := model.state_dict().keys() - stored:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise WeightsError(f"{folder} does not fit its model: the weight {min(missing)!r} is missing{more}")


def check_folder(folder: Path) -> None:
    """Check a model folder without loading it: its classes, and each network's weights by name and shape.

    Raises WeightsError naming the first fault.
    """
    if is_ours(folder):
        Pipeline.from_pretrained(folder)
        return
    inner = load_skeleton(folder)
    for part, library, class_name in components(folder):
        paths = weights_in(folder / part)
        if issubclass(getattr(import_module(library), class_name), torch.nn.Module) and not paths:
            raise WeightsError(f"{folder / part} must hold weights as safetensors; it does not, so convert them")
        network, have = getattr(inner, part, None), dict[str, tuple[int, ...]]()
        for path in paths:
            try:
                with safe_open(path, framework="pt") as weights:
                    names = weights.keys()
                    have |= {name: tuple(weights.get_slice(name).get_shape()) for name in names}
            except SafetensorError as error:
                raise WeightsError(f"{path} is damaged: {error}; fetch it anew") from error
        for name, value in network.state_dict().items() if isinstance(network, ModelMixin) else ():
            if have.get(name) != tuple(value.shape):
                got = have.get(name, "none")
                raise WeightsError(f"{folder / part}: the weight {name!r} must be {tuple(value.shape)}; got {got}")


def default_dtype() -> torch.dtype:
    """Return the float type that weights are loaded in: bfloat16 on a GPU, else float32."""
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def hash_of_folder(folder: Path) -> str:
    """Return the hash of a folder's weights and configs; read again only where a file has changed."""
    files = [folder / INDEX]
    for part, _, _ in components(folder):
        files += sorted((folder / part).glob("*config.json")) + weights_in(folder / part)
    stats = tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return _hash_of_files(stats)


@cache
def _hash_of_files(stats: tuple[tuple[str, int, int], ...]) -> str:
    return hash_of_file(*(Path(name) for name, _, _ in stats))
