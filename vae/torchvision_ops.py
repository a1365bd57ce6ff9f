"""Let torchvision be imported beside a CPU build of torch.

The torchvision wheel is linked against CUDA. Beside a CPU torch its library cannot load, and then `import torchvision`
dies on the undefined operator `torchvision::nms`, taking open_clip, transformers' models, diffusers' pipelines and the
accelerate script with it. Longtake calls none of these operators. Declaring them, without a kernel, is enough for the
import.

Importing this module watches for the import of torchvision and declares them just before. `leave_line` leaves a line in
the environment's site-packages that does the same for commands which are not ours, such as `accelerate launch`.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import sysconfig
from pathlib import Path

LINE = "import importlib.util as u; u.find_spec('vae') and __import__('vae.torchvision_ops')\n"
_libraries = []  # torch forgets an operator with the Library that declared it


def declare() -> bool:
    """Declare `nms` and `qnms` if torchvision's own library cannot load; return whether that was needed."""
    import torch

    package = importlib.machinery.PathFinder.find_spec("torchvision")
    if package is None or package.origin is None or _libraries:
        return bool(_libraries)
    try:
        torch.ops.load_library(Path(package.origin).parent / "_C.so")
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _libraries.append(library)
    return bool(_libraries)


class _Watch(importlib.abc.MetaPathFinder):
    """Notice the first import of torchvision, declare its operators, and leave the import itself to the next finder."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            declare()
        return None


def watch() -> None:
    """Declare the operators when, and only when, torchvision is imported; costs nothing until then."""
    if "torchvision" not in sys.modules and not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


def leave_line() -> None:
    """Leave the line in this environment's site-packages, or take it away where it is not needed."""
    target = Path(sysconfig.get_paths()["purelib"]) / "longtake_torchvision.pth"
    if declare():
        target.write_text(LINE)
    else:
        target.unlink(missing_ok=True)


watch()
