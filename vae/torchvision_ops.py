"""Make torchvision importable with a CPU build of torch.

The torchvision wheel is linked against CUDA. With a CPU build of torch its library does not load, and `import
torchvision` fails on the undefined operator `torchvision::nms`; so do open_clip, transformers' models, diffusers'
pipelines and the accelerate command, which import it. Longtake calls none of these operators, so declaring them without
a kernel is enough.

Importing this module installs a finder that declares them just before torchvision is imported. `write_pth_file` makes
every Python process of the environment do so, for commands such as `accelerate launch`.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import sysconfig
from pathlib import Path

PTH_LINE = "import importlib.util as u; u.find_spec('vae') and __import__('vae.torchvision_ops')\n"
_libraries = []  # torch removes an operator when the Library that declared it is garbage-collected


def declare() -> bool:
    """Declare `nms` and `qnms` if torchvision's own library cannot be loaded; return whether that was needed."""
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


class _TorchvisionFinder(importlib.abc.MetaPathFinder):
    """Declare the operators at the first import of torchvision; leave the import itself to the next finder."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            declare()
        return None


def install_finder() -> None:
    """Declare the operators if and when torchvision is imported; costs nothing before that."""
    if "torchvision" not in sys.modules and not any(isinstance(finder, _TorchvisionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TorchvisionFinder())


def write_pth_file() -> None:
    """Write the .pth file that imports this module at Python's start, or remove it if it is not needed."""
    target = Path(sysconfig.get_paths()["purelib"]) / "longtake_torchvision.pth"
    if declare():
        target.write_text(PTH_LINE)
    else:
        target.unlink(missing_ok=True)


install_finder()
