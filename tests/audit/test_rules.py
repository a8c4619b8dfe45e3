"""Rules: each file has all its parts and points at a real document, claim and experiment; its fix runs and repairs."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bn_graph
from bn_graph.audit import rules
from bn_graph.audit.report import AuditError, CannotTell, Finding, Level
from bn_graph.audit.rules import RULES, Undetermined, Verdict, collect, explain, selected
from bn_graph.graphs import effects
from bn_graph.graphs.graph import build
from bn_graph.tf1 import legacy_layers, tf
from experiments.machinery import register

ROOT = Path(__file__).parents[2]
CODES = [f"BN00{number}" for number in range(1, 10)] + ["BN010", "BN101", "BN102", "BN103"]
BATCH = np.array([[1.0, 10.0], [3.0, 30.0], [8.0, 20.0]], np.float32)


def test_every_file_of_the_package_is_a_rule_in_the_order_of_codes():
    assert list(RULES) == CODES
    files = sorted(path.stem for path in Path(rules.__file__).parent.glob("*.py") if path.stem != "__init__")
    assert files == [f"{rule.code.lower()}_{rule.name.replace('-', '_')}" for rule in RULES.values()]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_has_every_part(rule):
    optional = {"check_checkpoint"}
    assert not [field for field, value in rule._asdict().items() if not value and field not in optional]


def test_a_rule_is_added_by_a_file_alone(tmp_path):
    """In a copy of the package, a copy of a rule under another code."""
    shutil.copytree(ROOT / "bn_graph", tmp_path / "bn_graph", ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path / "bn_graph" / "audit" / "rules"
    source = (folder / "bn101_bias_before_batch_norm.py").read_text(encoding="utf-8")
    source = source.replace("BN101", "BN199").replace("bias-before-batch-norm", "another")
    (folder / "bn199_another.py").write_text(source, encoding="utf-8")
    command = [sys.executable, "-m", "bn_graph", "audit"]
    explained, helped = (
        subprocess.run([*command, *words], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
        for words in (["--explain", "BN199"], ["--help"])
    )
    assert explained.startswith("BN199 another (advice)")
    assert "BN199  advice" in helped


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_levels_and_names(rule):
    assert rule.level == (Level.ADVICE if rule.code.startswith("BN1") else Level.ERROR)
    assert re.fullmatch(r"[a-z]+(-[a-z]+)+", rule.name)
    assert len({other.name for other in RULES.values()}) == len(RULES)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_documents_claims_and_experiments_exist(rule):
    title, _, section = rule.document.partition(", section ")
    assert title in register.documents().values()
    (document,) = [key for key, name in register.documents().items() if name == title]
    claims = {claim: register.claims()[claim] for claim in rule.claims}
    assert section in {claim["section"] for name, claim in claims.items() if name.startswith(f"{document}-")}
    module = rule.experiment.replace("-", "_")
    assert (ROOT / f"experiments/{module}.py").exists()
    assert rule.experiment in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert module in {claim["experiment"] for claim in claims.values()}


@pytest.mark.parametrize("code", CODES)
def test_explain_has_every_part(code):
    rule, text = RULES[code], explain(code.lower())
    assert text.startswith(f"{code} {rule.name} ({rule.level})")
    words = " ".join(text.split())
    for part in (
        rule.what,
        rule.why,
        rule.document,
        rule.shows,
        rule.example,
        rule.undetermined,
        f"make {rule.experiment}",
    ):
        assert " ".join(part.split()) in words
    assert max(map(len, text.splitlines())) <= 120


def test_an_unknown_rule_lists_the_known_ones():
    with pytest.raises(AuditError, match=r"BN001, .*BN103") as error:
        explain("BN999")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("select", "ignore", "codes"),
    [
        ((), (), CODES),
        (("BN1",), (), ["BN101", "BN102", "BN103"]),
        (("bn1",), ("BN103",), ["BN101", "BN102"]),
        (("BN001", "BN00"), ("BN001",), CODES[1:9]),
        (("BN001",), ("BN001",), []),
    ],
)
def test_rules_are_selected_by_the_beginnings_of_their_codes(select, ignore, codes):
    assert [rule.code for rule in selected(select, ignore)] == codes


def test_verdicts_alike_are_one_finding_errors_first_and_the_undetermined_apart():
    advice, error = RULES["BN101"], RULES["BN001"]
    verdicts = [Verdict("a", ["1"]), Undetermined("b", "why"), Verdict("c", ["2"]), Undetermined("d", "why")]
    other = Verdict("e", level=Level.WARNING, message="another")
    findings, undetermined = collect([(advice, [Verdict("a")]), (error, [*verdicts, other])])
    assert [(finding.code, finding.level, finding.layers) for finding in findings] == [
        ("BN001", "error", ("a", "c")),
        ("BN001", "warning", ("e",)),
        ("BN101", "advice", ("a",)),
    ]
    assert findings[0] == Finding("BN001", Level.ERROR, ("a", "c"), error.message, ("1", "2"), error.fix)
    assert findings[1].message == "another" and findings[1].fix == error.fix
    assert undetermined == [CannotTell("BN001", ("b", "d"), "why")]


def test_a_finding_has_each_line_of_evidence_once():
    verdicts = [Verdict(str(number), [f"line {number}", "both"]) for number in range(9)]
    (finding,), _ = collect([(RULES["BN001"], verdicts)])
    assert sorted(finding.evidence) == sorted(["both", *(f"line {number}" for number in range(9))])


def test_the_readme_has_the_table_of_the_rules():
    text = (ROOT / "bn_graph/audit/README.md").read_text(encoding="utf-8")
    shown = text.partition("<!-- generated: rules -->\n")[2].partition("\n<!-- end: rules -->")[0]
    assert shown == rules.table(), "put what bn_graph.audit.rules.table() returns between the markers"


@pytest.mark.parametrize("code", CODES)
def test_the_code_of_a_fix_is_python(code):
    ast.parse(RULES[code].example)


# --- the fixes run, and repair ------------------------------------------------------------------------------------------


class _Names:
    """`tf` as the fixes mean it: tensorflow.compat.v1 with its layers."""

    layers = property(lambda self: legacy_layers())

    def __getattr__(self, name):
        return getattr(tf, name)


def run_fix(code, *paragraphs, **names):
    """Runs the example of a fix, or those paragraphs of it, and returns the names that it leaves."""
    parts = RULES[code].example.split("\n\n")
    text = "\n\n".join(parts[number] for number in paragraphs) if paragraphs else RULES[code].example
    names |= {"tf": _Names(), "bn_graph": bn_graph}
    exec(compile(text, f"<fix of {code}>", "exec"), names)
    return names


def written(op):
    graph = op.graph
    return effects.variables_written(build(graph), [op])


def trained_layer(name="bn", **options):
    x = tf.placeholder(tf.float32, [None, 2], name="x")
    y = legacy_layers().batch_normalization(x, training=True, name=name, **options)
    return x, y, {"loss": tf.reduce_mean(tf.square(y - 1.0)), "optimizer": tf.train.GradientDescentOptimizer(0.1)}


@pytest.fixture
def switch(plain_graph):
    return tf.placeholder_with_default(False, [])


STATISTICS = {"bn/moving_mean", "bn/moving_variance"}


@pytest.mark.parametrize("code", ["BN001", "BN103"])
@pytest.mark.parametrize("number", [0, 1])
def test_both_train_ops_run_the_updates(code, number, plain_graph):
    _, _, names = trained_layer()
    assert written(run_fix(code, number, **names)["train_op"]) >= STATISTICS


def test_bn002_leaves_a_checkpoint_with_the_datas_statistics(plain_graph, start, tmp_path):
    x, *_ = trained_layer(momentum=0.5)
    session = start()
    broken, repaired = str(tmp_path / "broken"), str(tmp_path / "repaired")
    tf.train.Saver().save(session, broken)
    run_fix("BN002", session=session, batches=[{x: BATCH}], checkpoint=broken, new_checkpoint=repaired)
    reader = tf.train.load_checkpoint(repaired)
    np.testing.assert_allclose(reader.get_tensor("bn/moving_mean"), BATCH.mean(0), rtol=1e-6)
    np.testing.assert_allclose(reader.get_tensor("bn/moving_variance"), BATCH.var(0, ddof=1), rtol=1e-6)
    assert not tf.train.load_checkpoint(broken).get_tensor("bn/moving_mean").any()


@pytest.mark.parametrize("number", [0, 1])
def test_bn003_savers_hold_the_statistics(number, plain_graph, start, tmp_path):
    _, y, _ = trained_layer()
    saver = run_fix("BN003", number, prediction=y)["saver"]
    saved = {name for name, _ in tf.train.list_variables(saver.save(start(), str(tmp_path / "model")))}
    assert saved >= STATISTICS


@pytest.mark.parametrize("paragraphs", [(0,), (0, 1)], ids=["tf.layers", "bn_graph"])
def test_bn004_predicts_one_example_as_in_any_batch(paragraphs, plain_graph, start):
    x = tf.placeholder(tf.float32, [None, 2])
    names = run_fix("BN004", *paragraphs, x=x)
    session = start()
    session.run(names["hidden"], {x: BATCH, names["is_training"]: True})
    together = session.run(names["hidden"], {x: BATCH})
    alone = np.concatenate([session.run(names["hidden"], {x: [row]}) for row in BATCH])
    np.testing.assert_array_equal(together, alone)


def test_bn005_cond_updates_in_training_and_not_at_inference(cond_kind, plain_graph, start):
    x, flag = tf.placeholder(tf.float32, [None, 2]), tf.placeholder(tf.bool, [])
    with tf.variable_scope("bn", use_resource=True):
        mean, variance, beta, gamma = (
            tf.get_variable(name, [2], initializer=tf.constant_initializer(value))
            for name, value in (("mean", 0.0), ("variance", 1.0), ("beta", 0.0), ("gamma", 1.0))
        )
    variables = {"mean": mean, "variance": variance, "beta": beta, "gamma": gamma}
    y = run_fix("BN005", 0, 1, 2, x=x, is_training=flag, **variables)["y"]
    session = start()
    session.run(y, {x: BATCH, flag: False})
    assert not session.run(mean).any()
    session.run(y, {x: BATCH, flag: True})
    np.testing.assert_allclose(session.run(mean), 0.01 * BATCH.mean(0), rtol=1e-6)
    np.testing.assert_allclose(session.run(variance), 0.99 + 0.01 * BATCH.var(0), rtol=1e-6)


def test_bn005_layers_share_variables_and_the_sample_updates_nothing(switch):
    names = run_fix("BN005", 3, 4, x=tf.placeholder(tf.float32, [None, 2]), is_training=switch)
    assert written(names["sample"].op) == set()
    built = build(tf.get_default_graph())
    assert effects.variables_read(built, [names["sample"]]) >= STATISTICS
    assert written(names["y"].op) == {"bn1/moving_mean", "bn1/moving_variance"}  # of the last paragraph's layer


def test_bn006_restores_what_is_there_and_computes_the_rest(plain_graph, start, tmp_path):
    x, *_ = trained_layer()
    session = start()
    session.run(tf.assign(tf.trainable_variables()[0], [5.0, 6.0]))
    lacking, repaired = str(tmp_path / "lacking"), str(tmp_path / "repaired")
    tf.train.Saver(tf.trainable_variables()).save(session, lacking)
    run_fix("BN006", session=session, batches=[{x: BATCH}], checkpoint=lacking, new_checkpoint=repaired)
    reader = tf.train.load_checkpoint(repaired)
    np.testing.assert_array_equal(reader.get_tensor("bn/gamma"), [5.0, 6.0])
    np.testing.assert_allclose(reader.get_tensor("bn/moving_mean"), BATCH.mean(0), rtol=1e-6)


@pytest.mark.parametrize("number", [0, 1])
def test_bn007_runs_the_updates_of_one_tower(number, plain_graph):
    x, losses = tf.placeholder(tf.float32, [None, 2]), []
    for tower in (0, 1, 10):
        with tf.name_scope(f"tower_{tower}"), tf.variable_scope("", reuse=tf.AUTO_REUSE):
            y = legacy_layers().batch_normalization(x, training=True, name="bn")
            losses.append(tf.reduce_mean(tf.square(y)))
    assert len(tf.get_collection(tf.GraphKeys.UPDATE_OPS)) == 6
    names = run_fix("BN007", number, loss=tf.add_n(losses), optimizer=tf.train.GradientDescentOptimizer(0.1))
    assigns = effects.writers(build(plain_graph), [names["train_op"]])
    moving = [writer for writer, variables in assigns.items() if variables & STATISTICS]
    assert len(moving) == 2 and all(writer.startswith("tower_0/") for writer in moving)


def test_bn008_layers_train_when_told_and_the_frozen_one_has_nothing_to_train(switch):
    x = tf.placeholder(tf.float32, [None, 2])
    names = run_fix("BN008", x=x, is_training=switch)
    updated = {
        variable
        for entry in tf.get_collection(tf.GraphKeys.UPDATE_OPS)
        for variable in effects.assigned_by(build(x.graph), entry)
    }
    assert len(updated) == 2 and written(names["y"].op) == {"bn1/moving_mean", "bn1/moving_variance"}
    frozen = effects.variables_read(build(x.graph), [names["frozen"]])
    assert len(frozen) == 4 and not frozen & {variable.op.name for variable in tf.trainable_variables()}


@pytest.mark.parametrize("paragraphs", [(0,), (0, 1)], ids=["tf.layers", "bn_graph"])
def test_bn009_takes_several_rows_and_bn_graph_refuses_one(paragraphs, switch, start):
    names = run_fix("BN009", *paragraphs, is_training=switch)
    session = start()
    hidden = session.run(names["hidden"], {names["x"]: BATCH, switch: True})
    np.testing.assert_allclose(hidden.std(0), 1.0, atol=1e-3)  # epsilon
    if paragraphs == (0,):
        assert not session.run(names["hidden"], {names["x"]: BATCH[:1], switch: True}).any()  # beta is left: 0
    else:
        with pytest.raises(tf.errors.InvalidArgumentError, match="at least two values per channel"):
            session.run(names["hidden"], {names["x"]: BATCH[:1], switch: True})


@pytest.mark.parametrize(("paragraphs", "name"), [((0, 1), "bn"), ((2,), "bn1")], ids=["tf.layers", "bn_graph"])
@pytest.mark.parametrize("cond_kind", ["v1"], indirect=True)
def test_bn010_updates_where_the_branch_is_taken_and_trains_where_it_is_not(paragraphs, name, graph, start):
    x, use_branch = tf.placeholder(tf.float32, [None, 2]), tf.placeholder(tf.bool, [])
    h = x * tf.get_variable("w", [2], initializer=tf.ones_initializer())
    outputs = run_fix("BN010", *paragraphs, x=h, use_branch=use_branch, is_training=True)["outputs"]
    step = bn_graph.train_op(tf.train.GradientDescentOptimizer(0.1), tf.reduce_mean(tf.square(outputs)))
    session = start()
    w, mean = (next(v for v in tf.global_variables() if v.op.name == n) for n in ("w", f"{name}/moving_mean"))
    session.run(step, {x: BATCH, use_branch: False})
    assert (session.run(w) != 1.0).all() and not session.run(mean).any()
    session.run(step, {x: BATCH, use_branch: True})
    assert session.run(mean).all()


def test_bn101_has_no_bias(switch):
    run_fix("BN101", x=tf.placeholder(tf.float32, [None, 2]), is_training=switch)
    assert not [variable for variable in tf.global_variables() if "bias" in variable.op.name]


def test_bn102_means_pytorchs_momentum(switch):
    names = run_fix("BN102", x=tf.placeholder(tf.float32, [None, 2]), is_training=switch)
    assert names["decay"] == pytest.approx(0.9)


def test_bn103_hook_lets_a_sound_run_start(plain_graph):
    tf.train.get_or_create_global_step()
    y = legacy_layers().batch_normalization(tf.constant(BATCH), training=True, name="bn")
    run_fix("BN103", loss=tf.reduce_mean(tf.square(y)), optimizer=tf.train.GradientDescentOptimizer(0.1))
