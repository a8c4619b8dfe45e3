"""One module an experiment, named for what it shows. Each runs as ``python -m experiments.<name>``."""

from bn_graph.commands.quiet import start_tensorflow_quietly

start_tensorflow_quietly()
