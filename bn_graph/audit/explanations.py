"""What each rule means, the document it comes from, the experiment that shows it, and the fix in code.

`RULES` holds one `Explanation` a rule; the reports and ``--explain`` read it. Nothing here imports TensorFlow: the code
of a fix is text, which the tests run.
"""

import textwrap
from typing import NamedTuple

from bn_graph.audit.findings import ADVICE, ERROR, AuditError

__all__ = ["RULES", "Explanation", "explain", "help_texts"]

_WIDTH = 100


class Explanation(NamedTuple):
    """One rule.

    Attributes:
        code: as ``BN001``.
        name: a short name, words joined by hyphens.
        level: of its findings, unless a finding says otherwise.
        title: what is wrong, in a line.
        meaning: what happens in such a graph, and why nothing fails.
        document: title of the document that it comes from, and the section.
        claims: ids of that document's claims in ``experiments/claims.toml``.
        experiment: the make target that shows it.
        shows: what to look for in that experiment.
        fix: Python for graph mode, with `tf` as ``tensorflow.compat.v1``: tf.layers first, then bn_graph.
        untold: when the audit says "cannot tell" instead of finding or clearing.
    """

    code: str
    name: str
    level: str
    title: str
    meaning: str
    document: str
    claims: tuple[str, ...]
    experiment: str
    shows: str
    fix: str
    untold: str


_ARTICLE = "tensorflow中的batchnorm"
_R2RT = "Implementing Batch Normalization in Tensorflow"
_SOLVER = "Model and Solver classes: MNIST with and without batch norm"
_FLAGS = "The trainable and training flags of tf.layers.batch_normalization"
_QA = "How Could I Use Batch Normalization in Tensorflow"

_ALL = (
    Explanation(
        code="BN001",
        name="detached-updates",
        level=ERROR,
        title="no train op runs the layer's update ops",
        meaning="""\
The layer normalizes by the batch in training and has ops that would update its moving statistics, but none of them is
upstream of a train op, over data or control edges. tf.layers and slim put these ops into the collection UPDATE_OPS and
leave it to the train op to depend on them. Without that nothing fails: the loss falls, tests with is_training=True look
well, and prediction normalizes by mean 0 and variance 1, which the data never had. Where several train ops alternate,
as in a GAN, it is enough that one of them runs the updates.""",
        document=f"{_ARTICLE}, section Wrong use and its result",
        claims=("article-01", "article-13", "solver-09"),
        experiment="missing-update-ops",
        shows="one network trained twice on the same batches, with and without the dependency, tested in both modes",
        fix="""\
# tf.layers and slim: the train op must depend on the update ops. Collect them after the layers are built.
with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
    train_op = optimizer.minimize(loss)

# bn_graph: train_op collects them itself; check_train_op raises if one of any origin is left out.
train_op = bn_graph.train_op(optimizer, loss)
bn_graph.check_train_op(train_op)

# tf.keras layers put nothing into UPDATE_OPS: depend on model.updates (or each layer's updates) in the same way.""",
        untold="""\
it does not: it says BN103 where the updates are gathered to be run by hand, or the checkpoint's statistics have moved
though no train op runs them; and nothing of a graph in which no train op is found or named (--train-op).""",
    ),
    Explanation(
        code="BN002",
        name="statistics-never-updated",
        level=ERROR,
        title="the checkpoint's moving statistics still hold their initial values",
        meaning="""\
In the checkpoint the layer's moving mean is all 0 and its moving variance all 1 (or what else the graph initializes them
with). No step of training has moved them: the train op leaves the update ops out, or there are none, as where tf.layers
is told trainable=False; or they were initialized anew before saving. Weights and gamma may be trained as well as can be:
at inference the layer does not normalize at all. It is told from the checksums in the .index file, so the .data file is
not needed.""",
        document=f"{_ARTICLE}, section Wrong use and its result",
        claims=("article-01", "flags-08"),
        experiment="missing-update-ops",
        shows="the statistics of the network trained without its update ops: still 0 and 1 after an epoch",
        fix="""\
# The weights are trained: compute the statistics that belong to them over training data, and save a new checkpoint.
tf.train.Saver().restore(session, checkpoint)
bn_graph.recalibrate(session, batches)  # feed dicts, as [{x: images}, ...]
bn_graph.save(bn_graph.make_saver(), session, new_checkpoint)

# The same without the code that built the graph:
#   python -m bn_graph recalibrate --meta M --checkpoint C --data D.npz --out NEW
# And so that the next training does not end like this, the fix of BN001.""",
        untold="""\
the layer's initial values are unknown (drawn at random, or no graph is at hand and the shapes do not tell), or the
checkpoint was written before the first step, so that nothing in it is trained.""",
    ),
    Explanation(
        code="BN003",
        name="statistics-not-saved",
        level=ERROR,
        title="a Saver saves gamma or beta and leaves the moving statistics out",
        meaning="""\
Moving statistics are not trainable, so a Saver of tf.trainable_variables() leaves them out. Whoever restores its
checkpoint gets an error that they are missing or uninitialized, if they are lucky; if the initializers were run first,
prediction silently normalizes by mean 0 and variance 1.""",
        document=f"{_ARTICLE}, section Restoring from a checkpoint",
        claims=("article-14", "article-16", "article-17"),
        experiment="checkpoint-variables",
        shows="one network saved by four Savers and restored in three ways, each in a new process",
        fix="""\
# Without a list of variables the Saver saves them all.
saver = tf.train.Saver()

# bn_graph: make_saver refuses a list that leaves statistics out. For a small file, make_inference_saver takes
# what inference of an output needs, statistics included, and no optimizer slots.
saver = bn_graph.make_saver()
saver = bn_graph.make_inference_saver(prediction)""",
        untold="""\
it does not. Where another Saver of the graph, or the checkpoint at hand, has the statistics, it is a warning. A Saver
whose names are fed or computed can't be read, and counts for nothing.""",
    ),
    Explanation(
        code="BN004",
        name="inference-by-batch-statistics",
        level=ERROR,
        title="an inference output normalizes with batch statistics",
        meaning="""\
The answer for one example depends on what else is in the batch, and a batch of a single example is its own mean: every
normalized input is 0, and the network says the same whatever it is shown. The layer has no switch, or the switch is
stuck on training, or there are no population statistics to switch to. Tests in large mixed batches look well, since
those estimate the population's statistics.""",
        document=f"{_R2RT}, section Making predictions",
        claims=("r2rt-12", "r2rt-13", "r2rt-21"),
        experiment="single-example",
        shows="the first 100 test images, each predicted alone, before and after the fix",
        fix="""\
# A switch that predicts unless it is told to train, so that serving can't forget it.
is_training = tf.placeholder_with_default(False, [], name="is_training")
hidden = tf.layers.batch_normalization(x, training=is_training)  # and BN001's fix, for its update ops

# bn_graph: the updates are dependencies of the output when it trains.
hidden = bn_graph.batch_norm_wrapper(x, is_training, name="bn1")

# A graph that exists, every layer on the path turned to its population statistics whatever the switch was:
#   python -m bn_graph inference-graph --meta M --checkpoint C --output NAME --out DIR""",
        untold="""\
the graph only trains, and its statistics may be good: what another graph, built for inference, does with them is not in
the file; or it computes gradients and applies none. Say which op is the output with --output, and how a switch stands
with --feed NAME=false. A switch that can be fed is taken to be fed right.""",
    ),
    Explanation(
        code="BN005",
        name="inference-updates-statistics",
        level=ERROR,
        title="running an inference output updates the moving statistics",
        meaning="""\
Predicting assigns the moving statistics, so that the model drifts toward whatever it is asked about, and its answers
depend on what was asked before. Two causes are common: assigns that are made outside of a tf.cond and named as control
dependencies inside a branch (they run whichever branch is taken), and updates in place in a copy of the network that is
meant for sampling or testing and was built in training mode.""",
        document=f"{_ARTICLE}, section tf.nn.batch_normalization, the wrapper",
        claims=("article-05", "article-12", "r2rt-18"),
        experiment="conditional-updates",
        shows="statistics before and after runs for inference, for each kind of variable and of cond",
        fix="""\
# An assign belongs to a branch only if it is made inside it.
def by_batch():
    batch_mean, batch_variance = tf.nn.moments(x, [0])
    moved = [
        tf.assign(mean, mean * 0.99 + batch_mean * 0.01),
        tf.assign(variance, variance * 0.99 + batch_variance * 0.01),
    ]
    with tf.control_dependencies(moved):
        return tf.nn.batch_normalization(x, batch_mean, batch_variance, beta, gamma, 1e-3)

def by_population():
    return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)

y = tf.cond(is_training, by_batch, by_population)  # mean and variance made with use_resource=True

# tf.layers decides by the flag itself, and a copy for sampling or testing is built with training=False.
with tf.variable_scope("", reuse=tf.AUTO_REUSE):
    y = tf.layers.batch_normalization(x, training=is_training, name="bn")
    sample = tf.layers.batch_normalization(x, training=False, name="bn")

# bn_graph, with ref and with resource variables.
y = bn_graph.batch_norm_wrapper(x, is_training, name="bn1")""",
        untold="""\
it does not. A switch that can be fed is taken to stand on inference; how another one stands, --feed NAME=value says.""",
    ),
    Explanation(
        code="BN006",
        name="statistics-not-in-checkpoint",
        level=ERROR,
        title="the checkpoint lacks moving statistics that the graph has",
        meaning="""\
The graph has moving statistics that the checkpoint does not hold: it was saved without them (BN003), or under other
names. Restoring with a Saver of all variables fails; restoring what is there and initializing the rest succeeds, and
predicts with mean 0 and variance 1.""",
        document=f"{_ARTICLE}, section Restoring from a checkpoint",
        claims=("article-14", "article-17"),
        experiment="checkpoint-variables",
        shows="what each way of restoring raises or, worse, does not raise; make restore-demo shows single images",
        fix="""\
# If the training still runs, save again, with a Saver of all variables.
saver = tf.train.Saver()

# If only this checkpoint is left: restore what it has, and compute its weights' statistics over training data.
there = {name for name, _ in tf.train.list_variables(checkpoint)}
session.run(tf.global_variables_initializer())
tf.train.Saver([v for v in tf.global_variables() if v.op.name in there]).restore(session, checkpoint)
bn_graph.recalibrate(session, batches)  # feed dicts, as [{x: images}, ...]
bn_graph.save(bn_graph.make_saver(), session, new_checkpoint)

# bn_graph.restore refuses a checkpoint that lacks statistics; statistics under other names are found by a name map:
#   bn_graph.restore(session, checkpoint, name_map=bn_graph.NAME_MAPS["pop"])""",
        untold="""\
the layer has neither gamma nor beta, so that nothing shows whether the checkpoint is of a graph that has it.""",
    ),
    Explanation(
        code="BN007",
        name="statistics-updated-twice",
        level=ERROR,
        title="the statistics are updated more than once a step",
        meaning="""\
One train op runs several updates of the same statistics. If they take in the same batch, as where updates in place were
put into the collection too, the average forgets faster than its decay says: an error. If they take in several batches (a
discriminator's real and generated images, towers on shards of one batch) it is a warning: the average is then one over
all of them, and wrong only as far as they are not alike. Assigns that read and write apart (not assign_sub) may lose one
another's updates, and the message says so.""",
        document=f"{_SOLVER}, section class Model",
        claims=("solver-10", "article-07"),
        experiment="missing-update-ops",
        shows="how many update ops one layer has that is applied twice, and what a scope's prefix collects",
        fix="""\
# Towers: one tower's updates are enough. The scope is a regular expression; the slash keeps tower_10 out.
with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS, scope="tower_0/")):
    train_op = optimizer.minimize(loss)

# bn_graph: collected by component and not by regular expression; several networks, each with its own updates.
updates = bn_graph.training.train_op.collect(name_scope="tower_0")
train_op = bn_graph.train_op(optimizer, loss, update_ops=updates)
# A GAN: bn_graph.train_op(optimizer, d_loss, scope="discriminator", var_list=d_variables)""",
        untold="""\
it does not. Updates that a switch keeps from running in one step are not counted; a loop's turns are not either.""",
    ),
    Explanation(
        code="BN008",
        name="inference-mode-in-training",
        level=ERROR,
        title="a layer built in inference mode is trained through, and nothing ever updates it",
        meaning="""\
The layer normalizes by its moving statistics while gradients flow through it, and no op updates these. tf.layers builds
a layer so when training= is left out, which is no error: its default is False. With statistics of 0 and 1 the layer is
only a scale and an offset. A layer that is frozen on purpose, for fine-tuning, is built in the same way, and is right if
its statistics come with the checkpoint that it starts from.""",
        document=f"{_FLAGS}, section Two phases",
        claims=("flags-05", "flags-08", "article-08"),
        experiment="training-vs-trainable",
        shows="which statistics normalize and whether the averages move, for each setting of the two flags",
        fix="""\
# tf.layers: training is False unless you say otherwise. And BN001's fix, for the update ops that it now has.
y = tf.layers.batch_normalization(x, training=is_training)

# bn_graph: is_training has no default.
y = bn_graph.batch_norm_wrapper(x, is_training, name="bn1")

# A layer frozen on purpose: say so for its gamma and beta too, and restore its statistics before the first step.
frozen = tf.layers.batch_normalization(x, training=False, trainable=False)""",
        untold="""\
it does not: without a checkpoint the finding is a warning, since the layer may be frozen on purpose, with statistics that
were trained before. With gamma and beta not trained, or statistics that have moved, there is no finding.""",
    ),
    Explanation(
        code="BN101",
        name="bias-before-batch-norm",
        level=ADVICE,
        title="a bias just before batch norm",
        meaning="""\
The mean takes the bias off again, so that its gradient is 0 but for rounding: it costs memory and a little time, and an
optimizer that divides by the gradient's size, such as Adam, lets it walk at random. The output is right all the same.""",
        document=f"{_R2RT}, section Building the graph",
        claims=("r2rt-05", "solver-12"),
        experiment="numerics",
        shows="outputs with and without the bias, its gradient, and how far Adam moves it",
        fix="""\
# beta does what the bias would.
h = tf.layers.dense(x, 32, use_bias=False)
h = tf.layers.batch_normalization(h, training=is_training)

# bn_graph
h = bn_graph.batch_norm_wrapper(tf.layers.dense(x, 32, use_bias=False), is_training, name="bn1")""",
        untold="the layer's input can't be followed to an op that adds a bias; nothing is said then.",
    ),
    Explanation(
        code="BN102",
        name="suspicious-constants",
        level=ADVICE,
        title="a decay or an epsilon that is probably a slip",
        meaning="""\
A decay below 0.5, or exactly 0.1, is often PyTorch's momentum, which is the weight of the *new* value and here 1 − decay:
with a decay of 0.1 the statistics are those of the last batch or two. An epsilon of 0 divides by 0 where a channel is
constant, which gives NaN; one above 0.1 holds the variance of ordinary activations well below 1.""",
        document=f"{_R2RT}, section Fixing the model",
        claims=("r2rt-03", "r2rt-17", "article-02"),
        experiment="population-estimators",
        shows="accuracy against decay and step; make numerics shows epsilon against the variance, and NaN without it",
        fix="""\
# momentum is the weight of the old value; these are tf.layers' defaults.
y = tf.layers.batch_normalization(x, momentum=0.99, epsilon=1e-3, training=is_training)

# bn_graph, with PyTorch's numbers
decay = bn_graph.decay_from_torch_momentum(0.1)  # 0.9
y = bn_graph.batch_norm_wrapper(x, is_training, decay=decay, epsilon=1e-5, name="bn1")""",
        untold="the constant is no constant in the graph: it is computed or fed.",
    ),
    Explanation(
        code="BN103",
        name="updates-run-by-hand",
        level=ADVICE,
        title="update ops that only a hook or the caller can run",
        meaning="""\
The layer's update ops are gathered into an op that no train op depends on: it is run beside it, as in
session.run([train_op, updates]), or by a hook. That may be right, and the graph can't prove it: whoever copies only the
train op has BN001. Beside the train op the two also run in no fixed order.""",
        document=f"{_QA}, section Previous answer, the helper's docstring",
        claims=("qa-06", "qa-07", "article-09"),
        experiment="conv-normalizer",
        shows="how often an averaging op that is run beside the train op saves this step's statistics, in two orders",
        fix="""\
# Let the train op run them, and nobody has to remember.
with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
    train_op = optimizer.minimize(loss)

# bn_graph
train_op = bn_graph.train_op(optimizer, loss)

# Where it has to stay by hand: a hook that warns when statistics have not moved after some steps.
from bn_graph.training.hook import StatisticsHook

with tf.train.MonitoredTrainingSession(hooks=[StatisticsHook(train_op)]) as session:
    session.run(train_op)""",
        untold="it is itself what the audit says where it can't tell BN001 from a run by hand.",
    ),
)

RULES: dict[str, Explanation] = {rule.code: rule for rule in _ALL}
"""All rules by their codes, in the order of the codes."""


def explain(code: str) -> str:
    """What ``--explain`` prints of a rule: its meaning, document, experiment, fix, and when it can't be told.

    Args:
        code: as ``BN001``, in either case.

    Raises:
        AuditError: there is no such rule; the message lists those there are.

    Example:
        >>> from bn_graph.audit.explanations import explain
        >>> print(explain("bn001").splitlines()[0])
        BN001 detached-updates (error)
    """
    rule = RULES.get(code.upper())
    if rule is None:
        raise AuditError(f"There is no rule {code!r}. There are: {', '.join(RULES)}.")
    shown = f"make {rule.experiment}: {rule.shows} (claims {', '.join(rule.claims)})."
    return "\n\n".join(
        [
            f"{rule.code} {rule.name} ({rule.level})\n{rule.title[0].upper()}{rule.title[1:]}.",
            _paragraph(rule.meaning),
            _labelled("Document", rule.document) + "\n" + _labelled("Experiment", shown),
            "Fix:\n\n" + textwrap.indent(rule.fix, "    "),
            _paragraph(f"Cannot tell: {rule.untold}"),
        ]
    )


def help_texts(rule: Explanation) -> tuple[str, str]:
    """A rule's help as plain text and as Markdown, as SARIF wants it.

    Example:
        >>> from bn_graph.audit.explanations import RULES, help_texts
        >>> help_texts(RULES["BN001"])[1].count("```")
        2
    """
    rest = f"Document: {rule.document}.\n\nExperiment: `make {rule.experiment}`: {rule.shows}."
    meaning, untold = _unwrapped(rule.meaning), _unwrapped(rule.untold)
    markdown = f"{meaning}\n\n{rest}\n\n```python\n{rule.fix}\n```\n\nThe audit cannot tell if {untold}"
    return explain(rule.code), markdown


def _unwrapped(text: str) -> str:
    return " ".join(text.split())


def _paragraph(text: str) -> str:
    return textwrap.fill(_unwrapped(text), _WIDTH, break_on_hyphens=False, break_long_words=False)


def _labelled(label: str, text: str) -> str:
    return textwrap.fill(
        f"{label + ':':<12}{text}", _WIDTH, subsequent_indent=" " * 12, break_on_hyphens=False, break_long_words=False
    )
