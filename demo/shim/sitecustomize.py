"""Lets torchvision be imported beside a CPU build of torch.

The usual torchvision wheel is linked against CUDA libraries that a CPU torch does not bring. Its C++ operators are
then never registered, and its import stops where it describes two of them: "operator torchvision::nms does not exist".
ComfyUI uses torchvision for image transforms only, so it is enough to declare those two; calling one still raises.

Python imports a module of this name at start-up when its folder is on PYTHONPATH. Only the demo's and the tests' server
get it there, and only where torchvision cannot be imported without; the pack itself never does.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

MISSING = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class DeclareOperators:
    """A finder that finds nothing: it waits for torchvision, declares the operators and leaves.

    Doing it at start-up instead would import torch before ComfyUI has set its environment for it.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch

        # The declarations last as long as this object does.
        self.library = torch.library.Library("torchvision", "DEF")
        for schema in MISSING:
            self.library.define(schema)


def run_hidden_sitecustomize() -> None:
    """Python imports one sitecustomize only: if ours stands before the environment's own, that one is run here."""
    here = Path(__file__).resolve().parent
    elsewhere = [entry for entry in sys.path if Path(entry).resolve() != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", elsewhere)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


finder = DeclareOperators()
sys.meta_path.insert(0, finder)
if __name__ == "sitecustomize":
    run_hidden_sitecustomize()
