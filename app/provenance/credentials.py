"""Sign files with Content Credentials: who made them, with which model, from which inputs.

Source: C2PA specification 2.2, through c2pa-python. A file is encoded, then gets its metadata, and is signed last. MP4,
GIF, PNG and WebP embed their credentials; WebM and Matroska cannot, so theirs are in a sidecar file, `NAME.webm.c2pa`.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from app.home import home
from app.provenance.certificate import (
    CERTIFICATE_VARIABLE,
    Certificate,
    ProvenanceError,
    load_certificate,
    trust_anchors,
)
from app.provenance.deterministic import derandomize, derandomize_file, manifest_label
from app.provenance.integrity import uncovered_hash
from app.provenance.manifest import (
    COMPOSITE,
    EMBEDDED_TYPES,
    GENERATED,
    LICENCE_LABEL,
    MEDIA_TYPES,
    MISSING,
    OWN_PIPELINE,
    PROGRAM,
    REQUEST_LABEL,
    SIDECAR_TYPES,
    UNCOVERED_LABEL,
    UNKNOWN_TYPE,
    c2pa_context,
    c2pa_message,
    credentials_path,
)
from app.provenance.verification import TAMPERED, verify_in_process
from app.registry import INDEX, MODELS, model_folder
from dit.modes import MODES
from dit.request import Request
from vae.files import atomic_write
from vae.video.credentials import hash_of_contents

if TYPE_CHECKING:
    import c2pa


def check_signing() -> None:
    """Check, before any expensive work, that files can be signed: sign an image of one pixel in memory.

    Raises ProvenanceError for a certificate that cannot be used, and for trust anchors that cannot be read.
    """
    import c2pa
    from PIL import Image

    certificate, image = load_certificate(), io.BytesIO()
    Image.new("L", (1, 1)).save(image, "PNG")
    action = {"action": "c2pa.created", "digitalSourceType": GENERATED}
    manifest = {"assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}]}
    try:
        with (
            c2pa_context(trust_anchors()) as context,
            _signer(certificate) as signer,
            c2pa.Builder(manifest, context=context) as builder,
        ):
            builder.sign(signer, "image/png", image, io.BytesIO())
    except c2pa.C2paError as error:
        rule = "a certificate must be one that C2PA accepts, for example EC P-256 with the usage emailProtection"
        raise ProvenanceError(
            f"{rule}; got {os.environ.get(CERTIFICATE_VARIABLE) or home()}: {c2pa_message(error)}; use another"
        ) from None


def sign(path: str | Path, request: Request, clips: Sequence[Path] | None = None) -> Path:
    """Sign a file that longtake just wrote; return the path of its credentials: the file itself, or its sidecar.

    The file is replaced once the signed one is complete, and stays unchanged after any error. The files that the
    request reads are recorded as ingredients, with their credentials; they are untrusted, so this runs in a sandboxed
    child process. For an image that shows `clips`, the clips are the ingredients and only the request's model is
    recorded. The same file, request, ingredients and certificate give the same bytes, except with an RSA key.

    Raises ProvenanceError where the certificate or a file cannot be used, MediaError where an ingredient crashes the
    child process, DiskError when the disk fails.
    """
    path = Path(os.path.realpath(path))
    if path.suffix.lower() not in (*EMBEDDED_TYPES, *SIDECAR_TYPES):
        known = ", ".join((*EMBEDDED_TYPES, *SIDECAR_TYPES))
        raise ProvenanceError(f"a file to sign must end in one of {known}; got {path}; rename it")
    certificate, anchors = load_certificate(), trust_anchors()
    if next(_inputs(request, clips), None) is None:
        sign_in_process(path, request, certificate, anchors, clips)
    else:
        from vae.video.sandbox import run_sandboxed

        run_sandboxed(sign_in_process, path, request, certificate, anchors, clips)
    return credentials_path(path)


def sign_in_process(
    path: Path, request: Request, certificate: Certificate, anchors: str, clips: Sequence[Path] | None = None
) -> dict:
    """Do `sign` in this process; return an empty dict, which a child process can send."""
    import c2pa

    target, media_type = credentials_path(path), MEDIA_TYPES[path.suffix.lower()]
    try:
        with atomic_write(target) as temporary, ExitStack() as stack:
            context = stack.enter_context(c2pa_context(anchors))
            signer = stack.enter_context(_signer(certificate))
            builder = stack.enter_context(_builder(path, request, clips, certificate, context, anchors))
            source = stack.enter_context(path.open("rb"))
            if target == path:
                with temporary.open("w+b") as signed:
                    builder.sign(signer, media_type, source, signed)
                    derandomize_file(signed, certificate)
            else:
                builder.set_no_embed()
                store = builder.sign(signer, media_type, source, stack.enter_context(open(os.devnull, "w+b")))
                temporary.write_bytes(derandomize(store, certificate))
    except c2pa.C2paError as error:
        raise ProvenanceError(f"{path} cannot be signed: {c2pa_message(error)}; it stays as it was") from None
    except OSError as error:
        from vae.video.pixels import DiskError

        raise DiskError(f"{path} cannot be signed: {error.strerror or error}; it stays as it was; make room") from error
    return {}


def _signer(certificate: Certificate) -> c2pa.Signer:
    import c2pa

    chain, key = certificate.chain.encode(), certificate.key.encode()
    return c2pa.Signer.from_info(c2pa.C2paSignerInfo(certificate.algorithm, chain, key, None))


def _builder(
    path: Path,
    request: Request,
    clips: Sequence[Path] | None,
    certificate: Certificate,
    context: c2pa.Context,
    anchors: str,
) -> c2pa.Builder:
    """Build the manifest of a file: generated by an AI model, from this request, with these input files."""
    import c2pa

    agent = {"name": PROGRAM, "version": _own_version()}
    actions = [{"action": "c2pa.created", "digitalSourceType": GENERATED, "softwareAgent": agent}]
    inputs = list(_inputs(request, clips))
    if inputs:
        parameters = {"ingredientIds": [id for _, id, _ in inputs]}
        edited = {"action": "c2pa.edited", "digitalSourceType": COMPOSITE, "softwareAgent": agent}
        actions.append(edited | {"parameters": parameters})
    assertions = [
        {"label": "c2pa.actions.v2", "data": {"actions": actions}},
        {"label": REQUEST_LABEL, "data": _request_claim(request, clips)},
        {"label": UNCOVERED_LABEL, "data": {"sha256": uncovered_hash(path)}},
    ]
    if licence := model_licence(request.model):
        assertions.append({"label": LICENCE_LABEL, "data": licence})
    missing = [_ingredient(file, id) | {"description": MISSING} for file, id, exists in inputs if not exists]
    manifest = {"claim_generator_info": [agent], "assertions": assertions, "ingredients": missing}
    manifest["instance_id"] = f"sha256:{hash_of_contents(path)}"
    contents = [part.read_bytes() for file, _, exists in inputs if exists for part in _with_sidecar(file)]
    if contents:  # the trust anchors decide what is recorded about ingredients
        contents.append(anchors.encode())
    manifest["label"] = manifest_label(json.dumps(manifest).encode(), certificate.chain.encode(), *contents)
    builder = c2pa.Builder(manifest, context=context)
    for file, id, exists in inputs:
        if exists:
            _add_ingredient(builder, file, id, context, anchors)
    return builder


def model_licence(model: str | None) -> dict[str, str] | None:
    """Return name and limits of the licence of another maker's model; None for ours, and where it is not here."""
    from app.licences import licence_of

    try:
        folder = model_folder(model)
        name = json.loads((folder / INDEX).read_text(encoding="utf-8")).get("_class_name")
    except (ValueError, OSError):
        return None
    if folder.parent == MODELS or name == OWN_PIPELINE:
        return None
    licence = licence_of(folder, str(name))
    return {"licence": licence.name} | ({"limits": licence.limits} if licence.limits else {})


def _own_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(PROGRAM)
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"


def _request_claim(request: Request, clips: Sequence[Path] | None) -> dict:
    """Return the fields of a request to record: all, or only the model for an image of several clips."""
    fields = json.loads(request.to_json())
    return fields if clips is None else {name: fields[name] for name in ("model", "model_hash") if name in fields}


def _with_sidecar(path: Path) -> list[Path]:
    return [path, *(sidecar for sidecar in {credentials_path(path)} - {path} if sidecar.is_file())]


def _inputs(request: Request, clips: Sequence[Path] | None = None) -> Iterator[tuple[Path, str, bool]]:
    """Yield (file, content id, whether the file still has that content) for each input of a clip, without duplicates.

    The inputs are the files that the request's mode reads, or `clips`. A file may have changed since: the output may
    have replaced its own input.
    """
    if clips is not None:
        yield from ((path, f"sha256:{hash_of_contents(path)}", True) for path in clips)
        return
    reads = MODES[request.mode].reads if request.mode in MODES else ()
    files = [getattr(request, field) for field in ("image", "clip", "other", "mask") if field in reads]
    files += [file for _, file in (request.keyframes or ()) if "keyframes" in reads]
    moments = request.moments or () if "moments" in reads else ()
    files += [file for moment in moments for file in (moment.image, moment.clip)]
    digests, seen = dict(request.hashes or ()), set()
    for file in dict.fromkeys(filter(None, files)):
        path = Path(file)
        current = hash_of_contents(path) if path.is_file() else None
        digest = digests.get(file, current)
        if digest is None or digest not in seen:  # a copy under another name is the same ingredient
            seen.add(digest)
            yield path, f"sha256:{digest}" if digest else f"file:{path.name}", current is not None and current == digest


def _ingredient(path: Path, id: str) -> dict:
    media_type = MEDIA_TYPES.get(path.suffix.lower(), UNKNOWN_TYPE)
    return {"title": path.name, "format": media_type, "relationship": "inputTo", "instance_id": id}


def _add_ingredient(builder: c2pa.Builder, path: Path, id: str, context: c2pa.Context, anchors: str) -> None:
    """Add a file as an ingredient, with its embedded or sidecar credentials where they can be read."""
    import c2pa

    ingredient, sidecar = _ingredient(path, id), credentials_path(path)
    with suppress(ValueError):  # a file without credentials
        if verify_in_process(path, anchors)["state"] == TAMPERED:
            ingredient["description"] = TAMPERED
    if sidecar != path and sidecar.is_file():
        with suppress(c2pa.C2paError), path.open("rb") as file, sidecar.open("rb") as store:
            with c2pa.Reader(ingredient["format"], file, store.read(), context=context) as reader:
                report = json.loads(reader.json())
            store.seek(0)
            builder.add_resource(sidecar.name, store)
            ingredient["manifest_data"] = {"format": "application/c2pa", "identifier": sidecar.name}
            ingredient |= {part: report[part] for part in ("active_manifest", "validation_results")}
    for media_type in (ingredient["format"], UNKNOWN_TYPE):
        with suppress(c2pa.C2paError), path.open("rb") as file:
            return builder.add_ingredient(ingredient | {"format": media_type}, media_type, file)
    raise ProvenanceError(f"{path} cannot be recorded as an ingredient; copy it again, or make the clip without it")
