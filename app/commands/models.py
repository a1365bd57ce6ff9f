"""`longtake models`: list, add, verify and remove models. Heavy modules are imported when it runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from app.licences import licence_of
from app.registry import (
    INDEX,
    MODELS,
    AddedModel,
    added_models,
    model_folder,
    shipped_models,
    write_added_models,
)
from dit.request import RequestError

GIB = 2**30


def add_models(commands) -> None:
    """Add the command that manages models."""
    models = commands.add_parser(
        "models",
        help="list, add, verify and remove models",
        description="The models that --model takes by name: those shipped, and folders in diffusers' layout that you "
        "add. A folder's weights must be safetensors, and its Python code is never run.",
    )
    actions = models.add_subparsers(title="actions", metavar="ACTION", dest="action")
    listing = actions.add_parser("list", help="list all models with their licences and what they make")
    added = actions.add_parser("add", help="add a model folder by name")
    added.add_argument("folder", type=Path, help=f"a folder in diffusers' layout, with a {INDEX}")
    added.add_argument("--name", help="the name for --model (default: that of the folder)")
    added.add_argument("--agree", action="store_true", help="agree to a licence that has limits")
    verify = actions.add_parser("verify", help="check that a model's files are whole and unchanged since it was added")
    verify.add_argument("name", help="the name of a model, or a folder")
    remove = actions.add_parser("remove", help="forget a model that was added; its folder stays")
    remove.add_argument("name", help="the name of an added model")
    for action, run in ((listing, _list), (added, _add), (verify, _verify), (remove, _remove)):
        action.set_defaults(run=run)
        action.add_argument("--json", action="store_true", help="print JSON objects")
    models.set_defaults(run=_list, json=False)


def _list(args: argparse.Namespace) -> int | None:
    failed = False
    folders = {name: MODELS / name for name in shipped_models()}
    folders |= {name: one.folder for name, one in added_models().items()}
    for name, folder in folders.items():
        try:
            found = describe_model(name, folder)
        except (ValueError, OSError) as error:
            failed, found = True, {"name": name, "folder": str(folder), "error": str(error)}
        print(json.dumps(found, ensure_ascii=False) if args.json else _in_words(found))
    return 1 if failed else None


def describe_model(name: str, folder: Path) -> dict[str, Any]:
    """Return what is known of a model without loading it; raises WeightsError for a damaged folder."""
    from dit.adapters.load import class_of, components, family_of, is_ours
    from dit.estimate import count_values
    from vae.weights import weights_in

    if is_ours(folder):
        parts, family = ["transformer", "vae", "text_encoder"], "Longtake"
    else:
        parts = [part for part, _, _ in components(folder)]
        found = family_of(class_of(folder))
        family = found.__name__ if found else "its own call"
    files = [path for part in parts for path in weights_in(folder / part)]
    licence = licence_of(folder, class_of(folder))
    return {
        "name": name,
        "folder": str(folder),
        "pipeline": class_of(folder),
        "family": family,
        "parameters": sum(map(count_values, files)),
        "bytes": sum(path.stat().st_size for path in files),
        "licence": "Apache-2.0" if folder.parent == MODELS else licence.name,
        "limits": None if folder.parent == MODELS else licence.limits,
        "description": "Apache-2.0" if folder.parent == MODELS else licence.describe(),
    }


def _in_words(found: dict[str, Any]) -> str:
    if "error" in found:
        return f"{found['name']}  cannot be used: {found['error']}"
    size = f"{found['parameters'] / 1e9:.3g} B parameters, {found['bytes'] / GIB:.3g} GiB"
    return (
        f"{found['name']}  {found['pipeline']} ({found['family']}), {size}\n"
        f"    licence: {found['description']}\n    folder: {found['folder']}"
    )


def _add(args: argparse.Namespace) -> None:
    from dit.adapters.load import check_folder, hash_of

    folder, name = args.folder.resolve(), args.name or args.folder.resolve().name
    if name in shipped_models() or "/" in name or name.startswith("."):
        raise RequestError(f"a model's name must be new and without a slash; got {name!r}, so give another by --name")
    if not (folder / INDEX).is_file():
        raise RequestError(f"a model folder must hold a {INDEX}; {folder} does not")
    check_folder(folder)
    found = describe_model(name, folder)
    if found["limits"] and not args.agree:
        raise RequestError(
            f"the licence of {name} has limits, {found['description']}; read it, and give --agree to agree to it"
        )
    write_added_models(added_models() | {name: AddedModel(folder, hash_of(folder))})
    print(json.dumps(found, ensure_ascii=False) if args.json else _in_words(found))


def _verify(args: argparse.Namespace) -> None:
    from dit.adapters.load import check_folder, hash_of

    folder, known = model_folder(args.name), added_models().get(args.name)
    check_folder(folder)
    found = hash_of(folder)
    if known and known.hash != found:
        raise ValueError(
            f"the weights of {args.name} must be those that were added, {known.hash}; they are {found} now, so add it "
            "anew"
        )
    print(json.dumps({"name": args.name, "hash": found}) if args.json else f"{args.name}  {found}  whole")


def _remove(args: argparse.Namespace) -> None:
    models = added_models()
    if args.name not in models:
        raise RequestError(
            f"a model to remove must be one that was added ({', '.join(models) or 'none'}); got {args.name!r}"
        )
    folder = models.pop(args.name).folder
    write_added_models(models)
    print(
        json.dumps({"name": args.name, "folder": str(folder)})
        if args.json
        else f"{args.name}  its folder {folder} stays"
    )
