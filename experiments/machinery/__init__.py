"""What the experiments share: harness, register of claims, report, figures, tables, child processes."""
