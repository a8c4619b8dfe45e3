"""What `bench` measures: contenders, each in a process of its own, and the parent that asks them in turn."""
