"""Keeps TensorFlow's start-up notices off the terminal of this project's commands. The library itself never calls it.

TensorFlow's runtime prints a few lines while it is imported and while it looks for GPUs, from native code and before any
log level takes effect, so neither ``logging`` nor ``TF_CPP_MIN_LOG_LEVEL`` reaches them. Only notices are dropped; every
other line that native code writes meanwhile is passed on.
"""

import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterable

__all__ = ["start_tensorflow_quietly", "write_without_notices"]

_NOTICE = re.compile(
    r"^I\d{4} |^[-\d]{10} [:.\d]+: I "  # glog's INFO lines: which instruction sets and libraries are in use
    r"|^To enable the following instructions"
    r"|Unable to register cu\w+ factory|TF-TRT Warning"  # of TensorFlow 2.12 to 2.18, where nothing is wrong
    r"|^WARNING: All log messages before absl::InitializeLog"
    r"|failed call to cuInit"  # there is no GPU, which is no error for what this project does
    r"|Local rendezvous is aborting with status: ABORTED: Cleanup \d+ "  # a worker's last step being tidied up, sometimes
)


def start_tensorflow_quietly() -> None:
    """Imports TensorFlow and lets it look for devices, with what native code writes to stderr sifted.

    The warning that tf.layers gives of itself, that it is deprecated, is left out too: that it is old is known here.
    """
    warnings.filterwarnings("ignore", r".*is deprecated and will be removed in a future version", UserWarning)
    if "tensorflow" in sys.modules:
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile("w+", errors="replace") as written:
        os.dup2(written.fileno(), 2)
        try:
            from bn_graph.tf1 import hide_deprecation_notices, tf

            tf.config.list_physical_devices()
            hide_deprecation_notices()
            if tf.__version__.startswith(("2.17.", "2.18.")):
                # Their first session writes a notice that no log level holds back.
                with tf.Graph().as_default(), tf.Session() as session:
                    session.run(tf.constant(0))
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            written.seek(0)
            write_without_notices(written)


def write_without_notices(lines: Iterable[str]) -> None:
    """Writes what native code has written to stderr, without the notices."""
    sys.stderr.writelines(line for line in lines if not _NOTICE.search(line))
