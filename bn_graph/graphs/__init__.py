"""Reading and rewriting graphs without running them: what reaches what, which layers there are, how they infer."""
