"""Graphs for inference: every layer switched to its moving statistics, pruned, folded, written for serving."""
