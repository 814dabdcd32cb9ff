"""Start ComfyUI's main.py where torchvision was built for another torch: `python launch.py main.py --cpu ...`.

Such a torchvision cannot be imported, because its compiled operators are missing. ComfyUI needs its Python part only.
The two operators that its import refers to are declared without an implementation. Runs in ComfyUI's own Python.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def declare_missing_operators() -> None:
    """Make `import torchvision` possible; a torchvision that works is left alone."""
    import torch  # noqa: PLC0415 (after main.py's own folder is on sys.path)

    try:
        import torchvision  # noqa: F401, PLC0415
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    declare_missing_operators()
    runpy.run_path(sys.argv[0], run_name="__main__")
