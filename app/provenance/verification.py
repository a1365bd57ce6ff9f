"""Verify the Content Credentials of any file: its state, signer, model and inputs. Source: C2PA specification 2.2."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from app.provenance.certificate import ProvenanceError, trust_anchors
from app.provenance.integrity import has_credential_traces, is_unaltered, uncovered_hash
from app.provenance.manifest import (
    COMPOSITE,
    GENERATED,
    MEDIA_TYPES,
    MISSING,
    PROGRAM,
    REQUEST_LABEL,
    UNCOVERED_LABEL,
    c2pa_context,
    c2pa_message,
    credentials_path,
)

TRUSTED, VALID, TAMPERED, UNSIGNED = STATES = ("trusted", "valid", "tampered", "unsigned")
DAMAGED = "its credentials are damaged"
MATROSKA_MAGIC = b"\x1a\x45\xdf\xa3"  # RFC 8794: the first bytes of WebM and Matroska
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


def verify(path: str | Path) -> Verdict:
    """Verify the credentials of a file, in a sandboxed child process, since the file is untrusted.

    Raises ProvenanceError for a file that is broken or of a type without credentials, MediaError for one that cannot be
    read.
    """
    from vae.video.sandbox import run_sandboxed

    return Verdict(**run_sandboxed(verify_in_process, path, trust_anchors()))


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
            c2pa_context(anchors) as context,
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
            raise ProvenanceError(
                f"{rule}; it holds none: {c2pa_message(error)}; fetch it again, or remove it"
            ) from None
        raise ProvenanceError(_unreadable(path, c2pa_message(error))) from None
    return asdict(_verdict(path, credentials, report))


def _unreadable(path: Path, reason: str) -> str:
    rule = f"{path} must be a video or image, such as mp4, webm, mkv, gif, png or webp"
    return f"{rule}; it cannot be read as one: {reason}; choose another, or copy it again"


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
