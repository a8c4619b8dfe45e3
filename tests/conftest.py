"""Fixtures: a fresh graph under each kind of variable and of `cond`, and sessions with pinned threads."""

import numpy as np
import pytest

from bn_graph.commands.quiet import start_tensorflow_quietly

tf = None


def pytest_configure(config):
    """Imports TensorFlow, without its notices; the process that only hands out tests to others does without it."""
    global tf
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        start_tensorflow_quietly()
        from bn_graph.tf1 import tf


@pytest.fixture(params=["ref", "resource"])
def variable_kind(request):
    """The kind of variable that `graph` makes."""
    return request.param


@pytest.fixture(params=["v1", "v2"])
def cond_kind(request):
    """The kind of `tf.cond`, process-wide while the test runs, put back as it was whatever happens."""
    was_v2 = tf.control_flow_v2_enabled()
    try:
        _choose_cond(request.param == "v2")
        yield request.param
    finally:
        _choose_cond(was_v2)


def _choose_cond(v2):
    if v2:
        tf.enable_control_flow_v2()
    else:
        tf.disable_control_flow_v2()


@pytest.fixture
def graph(cond_kind, variable_kind):
    """A fresh default graph, once for each kind of variable and each kind of `cond`."""
    with tf.Graph().as_default() as fresh, tf.variable_scope("", use_resource=variable_kind == "resource"):
        yield fresh


VARIABLE_KINDS = pytest.mark.parametrize("cond_kind", ["v2"], indirect=True)
"""On a test of `graph` without any cond: the kinds of variables only."""

COND_KINDS = pytest.mark.parametrize("variable_kind", ["resource"], indirect=True)
"""On a test of `graph` without any assign: the kinds of `cond` only."""

USUAL_KINDS = pytest.mark.parametrize(
    ("variable_kind", "cond_kind"), [("ref", "v1"), ("resource", "v2")], indirect=True, ids=["TF1", "TF2"]
)
"""On a test of `graph` with many cases: the kinds that go together in TensorFlow 1 and in 2. How layers train and infer, and
what moves, is tested with the other two as well."""


@pytest.fixture
def plain_graph():
    """A fresh default graph, once: for what does not depend on the kind of variable or of `cond`."""
    with tf.Graph().as_default() as fresh:
        yield fresh


@pytest.fixture
def start():
    """Opens a session of the default graph: one thread, variables initialized, closed after the test.

    Graphs run as they were built: the optimizer takes longer than these small graphs, at every new set of fetches. What
    it could change (the order in loops, compiled and trained networks) is tested in sessions that have it.
    """
    sessions = []

    def open_session():
        config = tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        sessions.append(tf.Session(config=config))
        sessions[-1].run(tf.global_variables_initializer())
        return sessions[-1]

    yield open_session
    for session in sessions:
        session.close()


@pytest.fixture
def random():
    return np.random.RandomState(0)
