"""The layers: one core (`moments`, `population`) and thin forms over it."""
