"""The import of TensorFlow."""

import subprocess
import sys

import pytest

from bn_graph import tf1
from bn_graph.tf1 import tf

ABSENT = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name == "tensorflow":
            raise ModuleNotFoundError("No module named 'tensorflow'", name=name)
sys.meta_path.insert(0, Absent())
"""


@pytest.mark.parametrize("module", ["bn_graph.tf1", "bn_graph.layers", "bn_graph.recalibration"])
def test_without_tensorflow_the_import_says_in_one_sentence_what_to_install(module):
    done = subprocess.run([sys.executable, "-c", f"{ABSENT}import {module}"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: bn_graph's layers")
    assert "pip install 'bn_graph[tensorflow]'" in done.stderr.splitlines()[-1]


def test_a_part_of_a_partitioned_variable_tells_its_place_in_the_whole(plain_graph):
    with tf.variable_scope("net", partitioner=tf.fixed_size_partitioner(2)):
        parts = list(tf.get_variable("gamma", [5]))
    assert [tf1.slice_info(part) for part in parts] == [("net/gamma", [5], [0]), ("net/gamma", [5], [3])]
    assert tf1.slice_info(tf.get_variable("whole", [5])) is None
