"""Fixtures of this folder's tests: kinds of variables matter to what is saved and assigned, kinds of `cond` rarely."""

import pytest

from bn_graph.tf1 import tf


@pytest.fixture
def graph(variable_kind):
    """A fresh default graph, once for each kind of variable. A test with a `tf.cond` asks for `cond_kind` as well."""
    with tf.Graph().as_default() as fresh, tf.variable_scope("", use_resource=variable_kind == "resource"):
        yield fresh
