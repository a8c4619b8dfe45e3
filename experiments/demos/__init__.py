"""Demonstrations: a checkpoint restored, a checkpoint repaired, a training on several workers."""
