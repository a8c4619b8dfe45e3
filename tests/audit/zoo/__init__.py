"""A zoo of graphs and checkpoints as people write them in TensorFlow 1, each with the findings that must come out."""

from tests.audit.zoo import exported, forms, handwritten, not_batch_norm, other_kinds, public, savers, training
from tests.audit.zoo.harness import CASES, Built, Case, build

__all__ = [
    "CASES",
    "Built",
    "Case",
    "build",
    "exported",
    "forms",
    "handwritten",
    "not_batch_norm",
    "other_kinds",
    "public",
    "savers",
    "training",
]
