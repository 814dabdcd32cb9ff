"""Learned distances: named, never guessed. Nothing here downloads, and no number takes the place of a missing one."""

from __future__ import annotations

from eval.metrics.base import NotRun

WHY = (
    "weights absent: torchmetrics builds its {backbone} from torchvision, which this project keeps out "
    "(constraints.txt). In an environment of its own (pip install 'torchmetrics[image]'), "
    "torchmetrics.functional.image.{function} measures it on the clips that eval keeps without loss in eval-cells/"
)
NOT_RUN = (
    NotRun("lpips", WHY.format(backbone="AlexNet", function="learned_perceptual_image_patch_similarity")),
    NotRun("dists", WHY.format(backbone="VGG16", function="deep_image_structure_and_texture_similarity")),
)
