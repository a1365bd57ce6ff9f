"""Content Credentials: sign what longtake writes, and say of any file who made it, with what and from what.

Source: C2PA specification 2.2, by way of c2pa-python. A file is encoded first, then gets its words, and is signed last.
MP4, GIF, PNG and WebP hold their credentials; of WebM and Matroska, which cannot, they lie in a file beside it.
"""

from __future__ import annotations

import io
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from app.home import home
from app.provenance.certificate import OWN_CERTIFICATE, Certificate, ProvenanceError, anchors, certificate
from app.provenance.deterministic import label_for, settle, settled
from app.provenance.seal import holds_traces, is_as_written, rest_of
from dit.modes import MODES
from dit.request import Request
from vae.video.credentials import hash_of_contents

TRUSTED, VALID, TAMPERED, UNSIGNED = STATES = ("trusted", "valid", "tampered", "unsigned")
BESIDE = {".webm": "video/webm", ".mkv": "video/x-matroska"}
INSIDE = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png", ".webp": "image/webp"}
KINDS = {**BESIDE, **INSIDE, ".m4v": "video/mp4", ".mov": "video/quicktime", ".avi": "video/avi"}
KINDS |= {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".tif": "image/tiff", ".tiff": "image/tiff"}
OTHER = "application/octet-stream"
CREDENTIALS = ".c2pa"  # added to the name of a file that cannot hold them
MATROSKA = b"\x1a\x45\xdf\xa3"  # RFC 8794: how WebM and Matroska begin
PROGRAM, REQUEST, REST = "longtake", "longtake.request", "longtake.rest"
BY_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
WITH_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"

GONE = "gone"  # of an ingredient: it was replaced or removed before the clip was signed
DAMAGED = "its credentials are damaged"

# Nothing is fetched: an address in a stranger's file is not to be called.
SETTINGS = {
    "verify": {"verify_trust": True, "ocsp_fetch": False, "remote_manifest_fetch": False},
    "builder": {"thumbnail": {"enabled": False}},
}
UNKNOWN_SIGNER = {"signingCredential.untrusted"}  # what is no sign of a change
EXPIRED = {"signingCredential.expired", "claimSignature.outsideValidity"}


@dataclass(frozen=True)
class Verdict:
    """What the credentials of a file say.

    `state` is trusted (whole, and signed by somebody that one believes), valid (whole, signed by somebody), tampered
    or unsigned; `why` says more, where there is more to say. `signer` is the name in the certificate, `program` what
    made the file, `by_model` whether an AI model did, `model` and `model_hash` which one, and `ingredients` each file
    that it was made from and what it was then: signed, tampered, unsigned or gone. Of what was tampered with nothing is
    told but that.
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
    def sentence(self) -> str:
        """What the verdict says beside its state, for people."""
        model = " ".join(filter(None, (self.model, self.model_hash)))
        sources = ", ".join(f"{name} ({state})" for name, state in self.ingredients)
        parts = (
            self.why,
            self.signer and f"signed by {self.signer}{', whom nobody here knows' if self.state == VALID else ''}",
            self.program and f"made with {self.program}",
            self.by_model and "made by an AI model",
            model and f"model {model}",
            sources and f"from {sources}",
        )
        return "; ".join(part for part in parts if part)


def check_signing() -> None:
    """Make sure, before any expensive work, that files can be signed: sign a picture of one pixel in memory.

    Raises ProvenanceError for a certificate that cannot be used, or an authority that cannot be read.
    """
    import c2pa
    from PIL import Image

    by, picture = certificate(), io.BytesIO()
    Image.new("L", (1, 1)).save(picture, "PNG")
    action = {"action": "c2pa.created", "digitalSourceType": BY_MODEL}
    manifest = {"assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}]}
    try:
        with _context(anchors()) as context, _signer(by) as signer, c2pa.Builder(manifest, context=context) as builder:
            builder.sign(signer, "image/png", picture, io.BytesIO())
    except c2pa.C2paError as error:
        rule = "a certificate must be one that C2PA signs with, such as of EC P-256 for emailProtection"
        raise ProvenanceError(
            f"{rule}; got {os.environ.get(OWN_CERTIFICATE) or home()}: {_said(error)}; use another"
        ) from None


def sign(path: str | Path, request: Request, clips: Sequence[Path] | None = None) -> Path:
    """Sign a file that longtake just wrote; return the path of its credentials, the file itself or one beside it.

    The file is replaced when the signed one is whole, and stays as it was after any error. What the request names is
    recorded as ingredients, with its credentials; as these are strangers' files, that is done in a child. Of a picture
    that shows `clips` these are the ingredients, and of the request only its model is told.
    The same file, request and ingredients give the same bytes with the same certificate, unless its key is of RSA.
    Raises ProvenanceError where the certificate or a file cannot be used, MediaError where an ingredient crashes the
    child, DiskError when the disk fails.
    """
    path = Path(os.path.realpath(path))
    if path.suffix.lower() not in (*INSIDE, *BESIDE):
        known = ", ".join((*INSIDE, *BESIDE))
        raise ProvenanceError(f"what is signed must end in one of {known}; got {path}; rename it")
    by, trusted = certificate(), anchors()
    if next(_sources(request, clips), None) is None:
        sign_here(path, request, by, trusted, clips)
    else:
        from vae.video.sandbox import run_sandboxed

        run_sandboxed(sign_here, path, request, by, trusted, clips)
    return credentials_of(path)


def verify(path: str | Path) -> Verdict:
    """Say whether a file is as it was signed, by whom, and what was said of it; read in a child, as strangers' files
    are.

    Raises ProvenanceError for what cannot carry credentials or is broken, MediaError for what cannot be read at all.
    """
    from vae.video.sandbox import run_sandboxed

    return Verdict(**run_sandboxed(verify_here, path, anchors()))


def credentials_of(path: Path) -> Path:
    """Return where the credentials of a file are: in itself, or beside it."""
    return path.with_name(path.name + CREDENTIALS) if path.suffix.lower() in BESIDE else path


def sign_here(path: Path, request: Request, by: Certificate, trusted: str, clips: Sequence[Path] | None = None) -> dict:
    """Do `sign` in this process."""
    import c2pa

    target, kind = credentials_of(path), KINDS[path.suffix.lower()]
    draft = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with ExitStack() as stack:
            context = stack.enter_context(_context(trusted))
            signer = stack.enter_context(_signer(by))
            builder = stack.enter_context(_builder(path, request, clips, by, context, trusted))
            source = stack.enter_context(path.open("rb"))
            if target == path:
                with draft.open("x+b") as signed:
                    builder.sign(signer, kind, source, signed)
                    settle(signed, by)
            else:
                builder.set_no_embed()
                store = builder.sign(signer, kind, source, stack.enter_context(open(os.devnull, "w+b")))
                draft.write_bytes(settled(store, by))
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(draft, target)
    except c2pa.C2paError as error:
        raise ProvenanceError(f"{path} cannot be signed: {_said(error)}; it stays as it was") from None
    except OSError as error:
        from vae.video.pixels import DiskError

        raise DiskError(f"{path} cannot be signed: {error.strerror or error}; it stays as it was; make room") from error
    finally:
        draft.unlink(missing_ok=True)
    return {}


def _context(trusted: str):
    import c2pa

    return c2pa.Context.from_dict(SETTINGS | ({"trust": {"user_anchors": trusted}} if trusted else {}))


def _signer(by: Certificate):
    import c2pa

    return c2pa.Signer.from_info(c2pa.C2paSignerInfo(by.algorithm, by.chain.encode(), by.key.encode(), None))


def _builder(path: Path, request: Request, clips: Sequence[Path] | None, by: Certificate, context, trusted: str):
    """Write down what is claimed of a file: an AI model made it, on this request, from these files."""
    import c2pa

    agent = {"name": PROGRAM, "version": _own_version()}
    actions = [{"action": "c2pa.created", "digitalSourceType": BY_MODEL, "softwareAgent": agent}]
    sources = list(_sources(request, clips))
    if sources:
        names = {"ingredientIds": [name for _, name, _ in sources]}
        edited = {"action": "c2pa.edited", "digitalSourceType": WITH_MODEL, "softwareAgent": agent}
        actions.append(edited | {"parameters": names})
    claims = [
        {"label": "c2pa.actions.v2", "data": {"actions": actions}},
        {"label": REQUEST, "data": _told(request, clips)},
        {"label": REST, "data": {"sha256": rest_of(path)}},
    ]
    told = [_ingredient(file, name) | {"description": GONE} for file, name, is_here in sources if not is_here]
    manifest = {"claim_generator_info": [agent], "assertions": claims, "ingredients": told}
    manifest["instance_id"] = f"sha256:{hash_of_contents(path)}"
    given = [file.read_bytes() for source, _, is_here in sources if is_here for file in _with_credentials(source)]
    if given:  # whom one believes is noted of them
        given.append(trusted.encode())
    manifest["label"] = label_for(json.dumps(manifest).encode(), by.chain.encode(), *given)
    builder = c2pa.Builder(manifest, context=context)
    for file, name, is_here in sources:
        if is_here:
            _add_ingredient(builder, file, name, context, trusted)
    return builder


def _own_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(PROGRAM)
    except PackageNotFoundError:  # a copy that was never installed
        return "unknown"


def _told(request: Request, clips: Sequence[Path] | None) -> dict:
    """Return what is claimed of a request: all of it, or of a picture of several clips only the model."""
    found = json.loads(request.to_json())
    return found if clips is None else {name: found[name] for name in ("model", "model_hash") if name in found}


def _with_credentials(path: Path) -> list[Path]:
    return [path, *(beside for beside in {credentials_of(path)} - {path} if beside.is_file())]


def _sources(request: Request, clips: Sequence[Path] | None = None) -> Iterator[tuple[Path, str, bool]]:
    """Yield each file that a request's mode reads, or that a picture shows, a name for its contents, and whether it
    still has them: a clip may be replaced by what was made from it.
    """
    if clips is not None:
        yield from ((path, f"sha256:{hash_of_contents(path)}", True) for path in clips)
        return
    reads = MODES[request.mode].reads if request.mode in MODES else ()
    named = [getattr(request, field) for field in ("image", "clip", "other", "mask") if field in reads]
    named += [file for _, file in (request.pictures or ()) if "pictures" in reads]
    moments = request.moments or () if "moments" in reads else ()
    named += [file for moment in moments for file in (moment.image, moment.clip)]
    digests, seen = dict(request.hashes or ()), set()
    for file in dict.fromkeys(filter(None, named)):
        path = Path(file)
        now = hash_of_contents(path) if path.is_file() else None
        digest = digests.get(file, now)
        if digest is None or digest not in seen:  # a copy under another name is the same ingredient
            seen.add(digest)
            yield path, f"sha256:{digest}" if digest else f"file:{path.name}", now is not None and now == digest


def _ingredient(path: Path, name: str) -> dict:
    kind = KINDS.get(path.suffix.lower(), OTHER)
    return {"title": path.name, "format": kind, "relationship": "inputTo", "instance_id": name}


def _add_ingredient(builder, path: Path, name: str, context, trusted: str) -> None:
    """Add a file with the credentials that it holds or that lie beside it, and without where they cannot be read."""
    import c2pa

    told, beside = _ingredient(path, name), credentials_of(path)
    with suppress(ValueError):  # what carries no credentials
        if verify_here(path, trusted)["state"] == TAMPERED:
            told["description"] = TAMPERED
    if beside != path and beside.is_file():
        with suppress(c2pa.C2paError), path.open("rb") as file, beside.open("rb") as store:
            with c2pa.Reader(told["format"], file, store.read(), context=context) as reader:
                found = json.loads(reader.json())
            store.seek(0)
            builder.add_resource(beside.name, store)
            told["manifest_data"] = {"format": "application/c2pa", "identifier": beside.name}
            told |= {part: found[part] for part in ("active_manifest", "validation_results")}
    for kind in (told["format"], OTHER):
        with suppress(c2pa.C2paError), path.open("rb") as file:
            return builder.add_ingredient(told | {"format": kind}, kind, file)
    raise ProvenanceError(f"{path} cannot be recorded as an ingredient; copy it again, or make the clip without it")


def verify_here(path: str | Path, trusted: str) -> dict:
    """Do `verify` in this process; return the fields of the Verdict."""
    import c2pa

    from vae.video.read import check_readable

    path = check_readable(path)
    credentials = credentials_of(path)
    if credentials != path and not credentials.is_file():
        with path.open("rb") as file:
            if file.read(len(MATROSKA)) != MATROSKA:
                raise ProvenanceError(_unreadable(path, "it does not begin as WebM and Matroska do"))
        return asdict(Verdict(UNSIGNED))
    store = check_readable(credentials).read_bytes() if credentials != path else None
    try:
        with (
            _context(trusted) as context,
            path.open("rb") as file,
            c2pa.Reader(KINDS.get(path.suffix.lower()), file, store, context=context) as reader,
        ):
            report = json.loads(reader.json())
    except c2pa.C2paError as error:
        if holds_traces(credentials):
            return asdict(Verdict(TAMPERED, DAMAGED))
        if isinstance(error, c2pa.C2paError.ManifestNotFound):
            return asdict(Verdict(UNSIGNED))
        if str(error).startswith("Remote: "):
            address = str(error).split()[-1]
            return asdict(Verdict(UNSIGNED, f"it names credentials at {address}, which were not fetched"))
        if store is not None:
            rule = f"{credentials} must hold the credentials of {path.name}"
            raise ProvenanceError(f"{rule}; it holds none: {_said(error)}; fetch it again, or remove it") from None
        raise ProvenanceError(_unreadable(path, _said(error))) from None
    return asdict(_judged(path, credentials, report))


def _unreadable(path: Path, reason: str) -> str:
    rule = f"{path} must be a film or picture, such as mp4, webm, mkv, gif, png or webp"
    return f"{rule}; it cannot be read as one: {reason}; choose another, or copy it again"


def _said(error: Exception) -> str:
    """Return what the library says, without the name that it gives to the kind of error."""
    return str(error).split(": ", 1)[-1].strip() or type(error).__name__


def _judged(path: Path, credentials: Path, report: dict) -> Verdict:
    """Turn a validator's report into a verdict."""
    results, manifests = report.get("validation_results") or {}, report.get("manifests") or {}
    active = manifests.get(report.get("active_manifest"))
    if active is None:
        return Verdict(TAMPERED, DAMAGED)
    found = results.get("activeManifest") or {}
    failed = list(found.get("failure") or ())
    for delta in results.get("ingredientDeltas") or ():
        failed += delta["validationDeltas"].get("failure") or ()
    codes = {one["code"] for one in failed}
    changed = [one for one in failed if one["code"] not in UNKNOWN_SIGNER | EXPIRED]
    if changed:
        return Verdict(TAMPERED, f"it is not what was signed ({changed[0].get('explanation') or changed[0]['code']})")
    assertions = active.get("assertions") or ()
    claims = {one["label"]: one["data"] for one in assertions if isinstance(one.get("data"), dict)}
    ours = {label for label, manifest in manifests.items() if _program(manifest)[0] == PROGRAM}
    if _program(active)[0] == PROGRAM:
        if not is_as_written(path, credentials, ours):
            return Verdict(TAMPERED, "it is not what was signed (bytes in its credentials)")
        rest = rest_of(path)
        if rest and rest != claims.get(REST, {}).get("sha256"):
            return Verdict(TAMPERED, "it is not what was signed (bytes of its frame, or the words beside it)")
    is_known = any(one["code"] == "signingCredential.trusted" for one in found.get("success") or ())
    signature = active.get("signature_info") or {}
    name, organization = signature.get("common_name"), signature.get("issuer")
    actions = [one for label in claims if label.startswith("c2pa.actions") for one in claims[label].get("actions", ())]
    model, model_hash = (claims.get(REQUEST, {}).get(field) for field in ("model", "model_hash"))
    return Verdict(
        TRUSTED if is_known and not codes & EXPIRED else VALID,
        "its certificate has expired" if codes & EXPIRED else None,
        f"{name} ({organization})" if name and organization else name or organization,
        " ".join(filter(None, _program(active))) or None,
        any(one.get("digitalSourceType") in (BY_MODEL, WITH_MODEL) for one in actions),
        None if model is None else str(model),
        None if model_hash is None else str(model_hash),
        tuple((one.get("title") or "a file", _standing(one)) for one in active.get("ingredients") or ()),
    )


def _program(manifest: dict) -> tuple[str | None, str | None]:
    """Return the name and version of the program that signed; older ones are one text."""
    first = next(iter(manifest.get("claim_generator_info") or ()), {})
    return first.get("name") or manifest.get("claim_generator"), first.get("version")


def _standing(ingredient: dict) -> str:
    """Say what the credentials of an ingredient were when it was used."""
    if ingredient.get("description") in (TAMPERED, GONE):
        return ingredient["description"]
    if not ingredient.get("active_manifest"):
        return UNSIGNED
    found = (ingredient.get("validation_results") or {}).get("activeManifest") or {}
    codes = {one["code"] for one in found.get("failure") or ()}
    return TAMPERED if codes - UNKNOWN_SIGNER - EXPIRED else "signed"
