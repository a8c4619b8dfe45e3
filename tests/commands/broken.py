"""What the tests of the repairing commands share: networks whose checkpoints hold statistics that were never updated."""

import hashlib
import itertools
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from bn_graph.layers import slim
from bn_graph.tf1 import tf
from tests import test_recalibration as forms

PUBLIC_GRAPHS = Path(__file__).parents[2] / "../shared/graphs"


def slim_batch_norm(z, flag, name):
    return slim.batch_norm(z, is_training=flag, epsilon=forms.EPSILON, scope=name)


FORMS = {
    "wrapper": (forms.wrapper, 2),
    "slim": (slim_batch_norm, 2),
    "tf.layers fused": (forms.tf_layers, 4),
    "tf.layers not fused": (forms.tf_layers_unfused, 2),
    "by hand in a branch": (forms.r2rt, 2),
    "averages' shadows": (forms.moving_average_shadows, 2),
}
FORMS_AND_KINDS = pytest.mark.parametrize(
    ("form", "variable_kind", "cond_kind"),
    [
        (form, variables, cond)
        for form in FORMS
        for variables, cond in itertools.product(("ref", "resource"), ("v1", "v2"))
        if form == "wrapper" or (variables, cond) in {("ref", "v1"), ("resource", "v2")}
    ],
    indirect=["variable_kind", "cond_kind"],
)
"""The kinds that go together, of TensorFlow 1 and of 2; one form with the other two as well. In tests/test_recalibration.py
all forms have all kinds."""

AS_BUILT = tf.ConfigProto()  # each graph is run a few times: rewriting it would take longer
AS_BUILT.graph_options.rewrite_options.disable_meta_optimizer = True


class Broken(NamedTuple):
    """A saved network; `weights` of its dense layers, `output` by name."""

    prefix: str
    weights: list
    output: str

    @property
    def arguments(self):
        return ["--meta", f"{self.prefix}.meta", "--checkpoint", self.prefix]


def save(folder, form, random, *, rank=2, flag=None, layers=2, keep=lambda variable: True):
    """Saves a network in the default graph; `keep` tells which variables."""
    weights = forms.weights(random, layers)
    flag = tf.placeholder(tf.bool, [], name="is_training") if flag is None else flag
    _, output = forms.network(form, flag, weights, rank)
    with tf.Session(config=AS_BUILT) as session:
        session.run(tf.global_variables_initializer())
        saver = tf.train.Saver([variable for variable in tf.global_variables() if keep(variable)])
        prefix = saver.save(session, str(Path(folder) / "old" / "model"), write_state=False)
    return Broken(prefix, weights, output.name)


def write_examples(folder, random, count=60, rank=2, **arrays):
    """Data of the network's x; its path, and the array."""
    data = forms.examples(random, count, rank)
    path = Path(folder) / "data.npz"
    np.savez(path, **(arrays or {"x": data}))
    return str(path), data


def fingerprints(folder):
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).rglob("*") if path.is_file()
    }


def assert_one_line(capfd, *parts):
    """stderr is one line that holds all of `parts`, in any order."""
    # The commands silence the runtime's own log when they start TensorFlow, which the tests have started before.
    error = re.sub(
        r"^([WE]\d{4}|[-\d]{10} [:.\d]+: [WE]) .*\n(\t.*\n)*", "", capfd.readouterr().err, flags=re.MULTILINE
    )
    assert error.count("\n") == 1 and error.endswith("\n"), error
    for part in parts:
        assert part in error, error


def answers(directory, *batches):
    """What a SavedModel answers to each batch, through its signature."""
    with tf.Graph().as_default(), tf.Session(config=AS_BUILT) as session:
        signature = tf.saved_model.load(session, ["serve"], str(directory)).signature_def["serving_default"]
        (output,), (given,) = signature.outputs.values(), signature.inputs.values()
        return [session.run(output.name, {given.name: batch}) for batch in batches]


def expected_answers(data, weights, batch):
    """The network's outputs by the population statistics of `data`, from the definition."""
    known, asked = data.astype(np.float64), batch.astype(np.float64)
    for matrix in weights:
        known, asked = known @ matrix, asked @ matrix
        axes = tuple(range(known.ndim - 1))
        mean, variance = known.mean(axes), known.var(axes, ddof=1)
        known, asked = (np.tanh((z - mean) / np.sqrt(variance + forms.EPSILON)) for z in (known, asked))
    return asked
