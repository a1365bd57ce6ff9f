"""What longtake's C2PA manifests contain, and where files keep them; shared by signing and verification."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import c2pa

SIDECAR_TYPES = {".webm": "video/webm", ".mkv": "video/x-matroska"}  # media types by suffix
EMBEDDED_TYPES = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png", ".webp": "image/webp"}
MEDIA_TYPES = {**SIDECAR_TYPES, **EMBEDDED_TYPES, ".m4v": "video/mp4", ".mov": "video/quicktime", ".avi": "video/avi"}
MEDIA_TYPES |= {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".tif": "image/tiff", ".tiff": "image/tiff"}
UNKNOWN_TYPE = "application/octet-stream"
SIDECAR_SUFFIX = ".c2pa"  # added to the name of a file that cannot embed its credentials
PROGRAM, REQUEST_LABEL, UNCOVERED_LABEL = "longtake", "longtake.request", "longtake.rest"  # the latter two: assertions
LICENCE_LABEL = "longtake.licence"  # an assertion: the licence of another maker's model, and its limits
OWN_PIPELINE = "Pipeline"  # the class that model folders of this project name
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
COMPOSITE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
MISSING = "gone"  # state of an ingredient that was replaced or removed before the clip was signed

# Nothing is fetched: a URL in an untrusted file must not be called.
C2PA_SETTINGS = {
    "verify": {"verify_trust": True, "ocsp_fetch": False, "remote_manifest_fetch": False},
    "builder": {"thumbnail": {"enabled": False}},
}


def credentials_path(path: Path) -> Path:
    """Return the file that holds the credentials of a file: itself, or its sidecar."""
    return path.with_name(path.name + SIDECAR_SUFFIX) if path.suffix.lower() in SIDECAR_TYPES else path


def c2pa_context(anchors: str) -> c2pa.Context:
    import c2pa

    return c2pa.Context.from_dict(C2PA_SETTINGS | ({"trust": {"user_anchors": anchors}} if anchors else {}))


def c2pa_message(error: Exception) -> str:
    """Return the library's message without the error's type, with which it begins."""
    return str(error).split(": ", 1)[-1].strip() or type(error).__name__
