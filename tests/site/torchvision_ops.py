"""torchvision that does not fit to Torch: for tests, and processes with this folder in PYTHONPATH.

timm imports torchvision, and a torchvision built for another CUDA than Torch's does not import: it stumbles
over operators that its native part would have defined. Nothing here calls them.
"""

import importlib.util
import re
import sys
from pathlib import Path


class _Finder:
    """Defines the operators when torchvision is about to be imported, so that nothing is paid before."""

    library = None  # the operators live as long as this object

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            _Finder.library = _defined()


def _defined():
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    import torch

    version = Path(spec.origin).with_name("version.py").read_text()  # importing it imports all of torchvision
    build = re.search(r"^__version__ = '[^'+]*\+?(.*)'", version, re.MULTILINE)  # cpu, cu130, ...
    if build is None or build[1] == torch.__version__.partition("+")[2]:
        return None
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def install():
    """Once in a process."""
    if "torchvision" not in sys.modules and not any(isinstance(f, _Finder) for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
