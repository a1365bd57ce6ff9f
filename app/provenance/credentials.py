"""Content Credentials: sign the files that longtake writes, and verify any file: its signer, model and inputs.

Source: C2PA specification 2.2, through c2pa-python. A file is encoded, then gets its metadata, and is signed last. MP4,
GIF, PNG and WebP embed their credentials; WebM and Matroska cannot, so theirs are in a sidecar file, `NAME.webm.c2pa`.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
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
from app.provenance.integrity import has_credential_traces, is_unaltered, uncovered_hash
from dit.modes import MODES
from dit.request import Request
from vae.files import atomic_write
from vae.video.credentials import hash_of_contents

if TYPE_CHECKING:
    import c2pa

TRUSTED, VALID, TAMPERED, UNSIGNED = STATES = ("trusted", "valid", "tampered", "unsigned")
SIDECAR_TYPES = {".webm": "video/webm", ".mkv": "video/x-matroska"}  # media types by suffix
EMBEDDED_TYPES = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png", ".webp": "image/webp"}
MEDIA_TYPES = {**SIDECAR_TYPES, **EMBEDDED_TYPES, ".m4v": "video/mp4", ".mov": "video/quicktime", ".avi": "video/avi"}
MEDIA_TYPES |= {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".tif": "image/tiff", ".tiff": "image/tiff"}
UNKNOWN_TYPE = "application/octet-stream"
SIDECAR_SUFFIX = ".c2pa"  # added to the name of a file that cannot embed its credentials
MATROSKA_MAGIC = b"\x1a\x45\xdf\xa3"  # RFC 8794: the first bytes of WebM and Matroska
PROGRAM, REQUEST_LABEL, UNCOVERED_LABEL = "longtake", "longtake.request", "longtake.rest"  # the latter two: assertions
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
COMPOSITE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"

MISSING = "gone"  # state of an ingredient that was replaced or removed before the clip was signed
DAMAGED = "its credentials are damaged"

# Nothing is fetched: a URL in an untrusted file must not be called.
C2PA_SETTINGS = {
    "verify": {"verify_trust": True, "ocsp_fetch": False, "remote_manifest_fetch": False},
    "builder": {"thumbnail": {"enabled": False}},
}
UNTRUSTED_CODES = {"signingCredential.untrusted"}  # validation failures that do not mean tampering
EXPIRED_CODES = {"signingCredential.expired", "claimSignature.outsideValidity"}


@dataclass(frozen=True)
class Verdict:
    """The result of verifying a file's credentials.

    `state` is trusted (unchanged, signed under a trusted authority), valid (unchanged, signer unknown here), tampered
    or unsigned; `why` explains it where needed. `signer` is the name in the certificate, `program` the software that
    wrote the file, `by_model` whether an AI model generated it, `model` and `model_hash` which one. `ingredients` are
    the input files with their states at signing: signed, tampered, unsigned or gone. A tampered file has only `state`
    and `why`: its other claims cannot be believed.
    """

    state: str
    why: str | None = None
    signer: str | None = None
    program: str | None = None
    by_model: bool = False
    model: str | None = None
    model_hash: str | None = None
    ingredients: tuple[tuple[str, str], ...] = ()

    @property
    def summary(self) -> str:
        """One sentence for people with everything but the state."""
        model = " ".join(filter(None, (self.model, self.model_hash)))
        sources = ", ".join(f"{name} ({state})" for name, state in self.ingredients)
        parts = (
            self.why,
            self.signer and f"signed by {self.signer}{', who is unknown here' if self.state == VALID else ''}",
            self.program and f"made with {self.program}",
            self.by_model and "made by an AI model",
            model and f"model {model}",
            sources and f"from {sources}",
        )
        return "; ".join(part for part in parts if part)


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
            _context(trust_anchors()) as context,
            _signer(certificate) as signer,
            c2pa.Builder(manifest, context=context) as builder,
        ):
            builder.sign(signer, "image/png", image, io.BytesIO())
    except c2pa.C2paError as error:
        rule = "a certificate must be one that C2PA accepts, for example EC P-256 with the usage emailProtection"
        raise ProvenanceError(
            f"{rule}; got {os.environ.get(CERTIFICATE_VARIABLE) or home()}: {_message(error)}; use another"
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


def verify(path: str | Path) -> Verdict:
    """Verify the credentials of a file, in a sandboxed child process, since the file is untrusted.

    Raises ProvenanceError for a file that is broken or of a type without credentials, MediaError for one that cannot be
    read.
    """
    from vae.video.sandbox import run_sandboxed

    return Verdict(**run_sandboxed(verify_in_process, path, trust_anchors()))


def credentials_path(path: Path) -> Path:
    """Return the file that holds the credentials of a file: itself, or its sidecar."""
    return path.with_name(path.name + SIDECAR_SUFFIX) if path.suffix.lower() in SIDECAR_TYPES else path


def sign_in_process(
    path: Path, request: Request, certificate: Certificate, anchors: str, clips: Sequence[Path] | None = None
) -> dict:
    """Do `sign` in this process; return an empty dict, which a child process can send."""
    import c2pa

    target, media_type = credentials_path(path), MEDIA_TYPES[path.suffix.lower()]
    try:
        with atomic_write(target) as temporary, ExitStack() as stack:
            context = stack.enter_context(_context(anchors))
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
        raise ProvenanceError(f"{path} cannot be signed: {_message(error)}; it stays as it was") from None
    except OSError as error:
        from vae.video.pixels import DiskError

        raise DiskError(f"{path} cannot be signed: {error.strerror or error}; it stays as it was; make room") from error
    return {}


def _context(anchors: str) -> c2pa.Context:
    import c2pa

    return c2pa.Context.from_dict(C2PA_SETTINGS | ({"trust": {"user_anchors": anchors}} if anchors else {}))


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


def verify_in_process(path: str | Path, anchors: str) -> dict:
    """Do `verify` in this process; return the fields of the Verdict."""
    import c2pa

    from vae.video.read import check_readable

    path = check_readable(path)
    credentials = credentials_path(path)
    if credentials != path and not credentials.is_file():
        with path.open("rb") as file:
            if file.read(len(MATROSKA_MAGIC)) != MATROSKA_MAGIC:
                raise ProvenanceError(_unreadable(path, "it does not begin as WebM and Matroska do"))
        return asdict(Verdict(UNSIGNED))
    store = check_readable(credentials).read_bytes() if credentials != path else None
    try:
        with (
            _context(anchors) as context,
            path.open("rb") as file,
            c2pa.Reader(MEDIA_TYPES.get(path.suffix.lower()), file, store, context=context) as reader,
        ):
            report = json.loads(reader.json())
    except c2pa.C2paError as error:
        if has_credential_traces(credentials):
            return asdict(Verdict(TAMPERED, DAMAGED))
        if isinstance(error, getattr(c2pa.C2paError, "ManifestNotFound")):  # noqa: B009
            return asdict(Verdict(UNSIGNED))
        if str(error).startswith("Remote: "):
            url = str(error).split()[-1]
            return asdict(Verdict(UNSIGNED, f"it names credentials at {url}, which were not fetched"))
        if store is not None:
            rule = f"{credentials} must hold the credentials of {path.name}"
            raise ProvenanceError(f"{rule}; it holds none: {_message(error)}; fetch it again, or remove it") from None
        raise ProvenanceError(_unreadable(path, _message(error))) from None
    return asdict(_verdict(path, credentials, report))


def _unreadable(path: Path, reason: str) -> str:
    rule = f"{path} must be a video or image, such as mp4, webm, mkv, gif, png or webp"
    return f"{rule}; it cannot be read as one: {reason}; choose another, or copy it again"


def _message(error: Exception) -> str:
    """Return the library's message without the error's type, with which it begins."""
    return str(error).split(": ", 1)[-1].strip() or type(error).__name__


def _verdict(path: Path, credentials: Path, report: dict) -> Verdict:
    """Convert the validator's report into a Verdict."""
    results, manifests = report.get("validation_results") or {}, report.get("manifests") or {}
    active = manifests.get(report.get("active_manifest"))
    if active is None:
        return Verdict(TAMPERED, DAMAGED)
    statuses = results.get("activeManifest") or {}
    failures = list(statuses.get("failure") or ())
    for delta in results.get("ingredientDeltas") or ():
        failures += delta["validationDeltas"].get("failure") or ()
    codes = {failure["code"] for failure in failures}
    changes = [failure for failure in failures if failure["code"] not in UNTRUSTED_CODES | EXPIRED_CODES]
    if changes:
        return Verdict(TAMPERED, f"it is not what was signed ({changes[0].get('explanation') or changes[0]['code']})")
    assertions = active.get("assertions") or ()
    claims = {one["label"]: one["data"] for one in assertions if isinstance(one.get("data"), dict)}
    own_labels = {label for label, manifest in manifests.items() if _program(manifest)[0] == PROGRAM}
    if _program(active)[0] == PROGRAM:
        if not is_unaltered(path, credentials, own_labels):
            return Verdict(TAMPERED, "it is not what was signed (bytes in its credentials)")
        uncovered = uncovered_hash(path)
        if uncovered and uncovered != claims.get(UNCOVERED_LABEL, {}).get("sha256"):
            return Verdict(TAMPERED, "it is not what was signed (bytes of its container, or its metadata sidecar)")
    is_trusted = any(success["code"] == "signingCredential.trusted" for success in statuses.get("success") or ())
    signature = active.get("signature_info") or {}
    name, organization = signature.get("common_name"), signature.get("issuer")
    actions = [one for label in claims if label.startswith("c2pa.actions") for one in claims[label].get("actions", ())]
    model, model_hash = (claims.get(REQUEST_LABEL, {}).get(field) for field in ("model", "model_hash"))
    return Verdict(
        TRUSTED if is_trusted and not codes & EXPIRED_CODES else VALID,
        "its certificate has expired" if codes & EXPIRED_CODES else None,
        f"{name} ({organization})" if name and organization else name or organization,
        " ".join(filter(None, _program(active))) or None,
        any(action.get("digitalSourceType") in (GENERATED, COMPOSITE) for action in actions),
        None if model is None else str(model),
        None if model_hash is None else str(model_hash),
        tuple((one.get("title") or "a file", _ingredient_state(one)) for one in active.get("ingredients") or ()),
    )


def _program(manifest: dict) -> tuple[str | None, str | None]:
    """Return the name and version of the signing program; older manifests have them in one string."""
    first = next(iter(manifest.get("claim_generator_info") or ()), {})
    return first.get("name") or manifest.get("claim_generator"), first.get("version")


def _ingredient_state(ingredient: dict) -> str:
    """Return the state that an ingredient's credentials had when the clip was signed."""
    if ingredient.get("description") in (TAMPERED, MISSING):
        return ingredient["description"]
    if not ingredient.get("active_manifest"):
        return UNSIGNED
    statuses = (ingredient.get("validation_results") or {}).get("activeManifest") or {}
    codes = {failure["code"] for failure in statuses.get("failure") or ()}
    return TAMPERED if codes - UNTRUSTED_CODES - EXPIRED_CODES else "signed"
