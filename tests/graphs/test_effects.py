"""What a graph reaches: ops upstream, variables read and written, and the layer that an update op is for."""

import time

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

import bn_graph
from bn_graph.checkpoints.variables import global_variables_by_name
from bn_graph.graphs import effects
from bn_graph.graphs.graph import build
from bn_graph.tf1 import legacy_layers, tf
from tests.conftest import USUAL_KINDS

UPDATES = tf.GraphKeys.UPDATE_OPS
STATISTICS = {"bn/moving_mean", "bn/moving_variance"}


def graph_def(*nodes: tuple[str, str, list[str]]) -> tf.GraphDef:
    """A GraphDef of (name, op, inputs)."""
    made = tf.GraphDef()
    for name, op, inputs in nodes:
        made.node.add(name=name, op=op, input=inputs)
    return made


def flag(kind: str) -> bool | tf.Tensor:
    return True if kind == "bool" else tf.placeholder(tf.bool, [])


def wrapper_layer(x, training, name="bn", **options):
    return bn_graph.batch_norm_wrapper(x, training, updates_collection=UPDATES, name=name, **options)


def tf_layer(x, training, name="bn", **options):
    return legacy_layers().batch_normalization(x, training=training, name=name, **options)


def inputs(rank: int) -> tf.Tensor:
    return tf.placeholder(tf.float32, [None, 4, 5, 3] if rank == 4 else [None, 3])


def assigned_by_all(graph: tf.Graph, key: str = UPDATES) -> set[str]:
    built = build(graph)
    return set().union(*(effects.assigned_by(built, entry) for entry in graph.get_collection(key)))


def test_upstream_follows_data_and_control_edges_and_takes_the_targets_in():
    built = build(
        graph_def(
            ("a", "Const", []),
            ("b", "Const", ["^a"]),
            ("c", "Neg", ["b:0"]),
            ("beside", "Neg", ["b"]),
            ("below", "Neg", ["c"]),
        )
    )
    assert effects.upstream(built, ["c:0"]) == {"a", "b", "c"}
    assert effects.upstream(built, "^c") == {"a", "b", "c"}
    assert effects.upstream(built, []) == set()


def test_upstream_ends_at_cycles_and_at_inputs_that_name_no_node():
    built = build(graph_def(("merge", "Merge", ["gone", "next"]), ("next", "NextIteration", ["merge"])))
    assert effects.upstream(built, ["next"]) == {"merge", "next"}


@pytest.mark.parametrize("ask", [effects.upstream, effects.variables_read, effects.variables_written, effects.writers])
def test_a_target_that_the_graph_lacks_is_named(ask):
    with pytest.raises(ValueError, match="no node named 'typo'"):
        ask(build(graph_def(("a", "Const", []))), ["a", "typo:0"])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_upstream_is_the_transitive_closure_of_any_graph(data):
    count = data.draw(st.integers(1, 12))
    names = st.integers(0, count - 1)
    edges = data.draw(st.sets(st.tuples(names, names), max_size=30))
    control = data.draw(st.sets(st.sampled_from(sorted(edges)) if edges else st.nothing()))
    built = build(
        graph_def(
            *(
                (f"n{i}", "Op", [("^n" if (i, j) in control else "n") + str(j) for k, j in sorted(edges) if k == i])
                for i in range(count)
            )
        )
    )
    start = data.draw(names)
    closure = {start}
    for _ in range(count):
        closure |= {j for i, j in edges if i in closure}
    assert effects.upstream(built, [f"n{start}"]) == {f"n{i}" for i in closure}


def test_a_hundred_thousand_nodes_in_a_chain_cost_seconds():
    big = tf.GraphDef()
    for i in range(100_000):
        big.node.add(name=f"n{i}", op="Add", input=[f"n{i - 1}", f"n{i // 2}"] if i else [])
    start = time.process_time()
    built = build(big)
    assert len(effects.upstream(built, ["n99999"])) == 100_000
    assert effects.variables_written(built, ["n99999"]) == set()
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("training", "read"),
    [(False, {"gamma", "beta", "moving_mean", "moving_variance"}), (True, {"gamma", "beta"})],
)
def test_outputs_read_the_statistics_at_inference_only(graph, training, read):
    y = wrapper_layer(inputs(2), training)
    assert effects.variables_read(build(graph), [y]) == {f"bn/{name}" for name in read}


def test_a_variable_that_is_only_overwritten_or_asked_about_is_not_read(graph):
    v, w = tf.get_variable("v", []), tf.get_variable("w", [])
    overwrite = tf.assign(v, w)
    built = build(graph)
    assert effects.variables_read(built, [overwrite]) == {"w"}
    assert effects.variables_written(built, [overwrite]) == {"v"}
    asked = tf.is_variable_initialized(v)
    assert effects.variables_read(build(graph), [asked]) == set()
    decrement = tf.assign_sub(v, 1.0)
    assert effects.variables_read(build(graph), [decrement]) == {"v"}


def test_reading_writes_nothing_and_the_initializer_writes_everything(graph):
    y = wrapper_layer(inputs(2), False)
    start = tf.global_variables_initializer()
    built = build(graph)
    assert effects.variables_written(built, [y]) == set()
    assert effects.variables_written(built, [start]) == set(global_variables_by_name(graph))


@pytest.mark.parametrize(
    ("optimizer", "slots"),
    [
        (lambda rate: tf.train.GradientDescentOptimizer(rate), set()),
        (lambda rate: tf.train.MomentumOptimizer(rate, 0.9), {"w/Momentum"}),
        (lambda rate: tf.train.AdamOptimizer(rate), {"w/Adam", "w/Adam_1", "beta1_power", "beta2_power"}),
    ],
)
def test_an_optimizer_writes_its_variables_and_slots_and_not_its_learning_rate(graph, optimizer, slots):
    w, rate = tf.get_variable("w", [2]), tf.get_variable("rate", [], trainable=False)
    step = optimizer(rate).minimize(tf.reduce_sum(w * w))
    built = build(graph)
    assert effects.variables_written(built, [step]) == {"w", *slots}
    assert effects.variables_read(built, [step]) == {"w", "rate", *slots}


def test_scatters_write_the_variable_and_scatter_nd_of_a_value_does_not(graph):
    w = tf.get_variable("w", [4])
    scattered = tf.scatter_update(w, [0], [1.0])
    rows = tf.scatter_nd([[0]], tf.identity(w)[:1], [4])
    built = build(graph)
    assert effects.variables_written(built, [scattered]) == {"w"}
    assert effects.variables_written(built, [rows]) == set()


def test_a_variable_is_found_through_forwarding_ops_but_not_through_its_value():
    ref = graph_def(
        ("v", "VariableV2", []),
        ("p", "Const", []),
        ("switch", "RefSwitch", ["v", "p"]),
        ("same", "RefIdentity", ["switch:1"]),
        ("first", "Assign", ["same", "p"]),
        ("second", "AssignAdd", ["first", "p"]),
        ("value", "Identity", ["v"]),
        ("apply", "ApplyAdam", ["gone", "value"]),
        ("rows", "ScatterNdNonAliasingAdd", ["v", "p", "p"]),
    )
    built = build(ref)
    assert effects.variables_written(built, ["second"]) == {"v"}
    assert effects.variables_written(built, ["apply", "rows"]) == set()
    resource = graph_def(
        ("v", "VarHandleOp", []),
        ("enter", "Enter", ["v"]),
        ("switch", "Switch", ["enter", "p"]),
        ("same", "Identity", ["switch:1"]),
        ("assign", "AssignVariableOp", ["same", "p"]),
    )
    assert effects.variables_written(build(resource), ["assign"]) == {"v"}


def test_assigns_in_nested_functions_are_mapped_back_to_the_callers_inputs():
    text = """
        node { name: "unused" op: "VarHandleOp" }
        node { name: "used" op: "VarHandleOp" }
        node { name: "p" op: "Const" }
        node { name: "call" op: "StatelessIf" input: "p" input: "unused" input: "used" input: "^p"
               attr { key: "then_branch" value { func { name: "outer" } } }
               attr { key: "else_branch" value { func { name: "nothing" } } } }
        node { name: "direct" op: "outer" input: "used" input: "unused" }
        node { name: "case" op: "Case" input: "p" input: "used" input: "unused"
               attr { key: "branches" value { list { func { name: "nothing" } func { name: "outer" } } } } }
        library {
          function { signature { name: "nothing" input_arg { name: "a" } input_arg { name: "b" } } }
          function { signature { name: "outer" input_arg { name: "a" } input_arg { name: "b" } }
            node_def { name: "inner_call" op: "StatefulPartitionedCall" input: "b"
                       attr { key: "f" value { func { name: "inner" } } } } }
          function { signature { name: "inner" input_arg { name: "handle" } }
            node_def { name: "same" op: "Identity" input: "handle" }
            node_def { name: "assign" op: "AssignAddVariableOp" input: "same:output:0" input: "one" }
            node_def { name: "again" op: "PartitionedCall" input: "handle"
                       attr { key: "f" value { func { name: "inner" } } } } }
        }"""
    built = build(text_format.Parse(text, tf.GraphDef()))
    assert effects.variables_written(built, ["call"]) == {"used"}
    assert effects.variables_written(built, ["direct"]) == {"unused"}
    assert effects.variables_written(built, ["case"]) == {"unused"}


def test_a_while_loop_of_either_kind_writes_what_its_body_assigns(cond_kind, plain_graph):
    with tf.variable_scope("", use_resource=True):
        v, w = tf.get_variable("v", []), tf.get_variable("w", [])

    def body(i):
        with tf.control_dependencies([tf.assign_add(v, w.read_value()).op]):
            return i + 1

    loop = tf.while_loop(lambda i: i < 3, body, [tf.constant(0)])
    assert effects.variables_written(build(plain_graph), [loop]) == {"v"}


@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize("flag_kind", ["bool", "tensor"])
@pytest.mark.parametrize("layer", [wrapper_layer, tf_layer])
@USUAL_KINDS
def test_update_ops_assign_exactly_their_own_layers_statistics(graph, layer, flag_kind, rank):
    training = flag(flag_kind)
    h = bn_graph.batch_norm_wrapper(inputs(rank), training, name="in_place")
    layer(layer(h, training, "below"), training)
    built = build(graph)
    by_layer = {"below": set(), "bn": set()}
    for entry in tf.get_collection(UPDATES):
        assigned = effects.assigned_by(built, entry)
        (scope,) = {name.split("/")[0] for name in assigned}
        by_layer[scope] |= assigned
    assert by_layer == {name: {f"{name}/moving_mean", f"{name}/moving_variance"} for name in ("below", "bn")}


def test_update_ops_reach_beyond_what_they_are_for(graph):
    h = bn_graph.batch_norm_wrapper(inputs(2), True, name="in_place")
    wrapper_layer(h, True)
    built = build(graph)
    written = effects.variables_written(built, tf.get_collection(UPDATES))
    assert written == STATISTICS | {"in_place/moving_mean", "in_place/moving_variance"}


@pytest.mark.parametrize("flag_kind", ["bool", "tensor"])
@pytest.mark.parametrize("option", [{"renorm": True}, {"virtual_batch_size": 2}])
@USUAL_KINDS
def test_update_ops_of_optional_forms_assign_the_statistics_too(graph, flag_kind, option):
    wrapper_layer(inputs(2), flag(flag_kind), **option)
    assigned = assigned_by_all(graph)
    assert assigned >= STATISTICS
    assert all(name.startswith("bn/") for name in assigned)


def test_a_group_and_a_value_read_after_the_assign_are_for_the_same_variables(graph):
    wrapper_layer(inputs(2), True)
    group = tf.group(*tf.get_collection(UPDATES))
    with tf.control_dependencies([group]):
        value = tf.identity(tf.constant(1.0))
    built = build(graph)
    assert effects.assigned_by(built, group) == STATISTICS
    assert effects.assigned_by(built, value) == STATISTICS


def test_an_op_that_computes_with_an_assigns_result_is_for_the_last_assign(graph):
    v, w = tf.get_variable("v", []), tf.get_variable("w", [])
    computed = tf.square(tf.assign_add(v, tf.assign_add(w, 1.0) * 2.0) * 2.0)
    built = build(graph)
    assert effects.assigned_by(built, computed) == {"v"}
    assert effects.variables_written(built, computed) == {"v", "w"}
    assert effects.assigned_by(built, w.op) == set()


def test_a_predicate_that_assigns_is_not_what_a_conditional_update_is_for(graph):
    training = tf.identity(tf.assign(tf.get_variable("training", [], tf.bool, trainable=False), True))
    wrapper_layer(inputs(2), training)
    assert assigned_by_all(graph) == STATISTICS


def test_variables_go_by_name_in_the_order_of_their_creation(graph):
    wrapper_layer(inputs(2), True)
    by_name = global_variables_by_name(graph)
    assert list(by_name) == ["bn/gamma", "bn/beta", "bn/moving_mean", "bn/moving_variance"]
    assert by_name["bn/gamma"] is tf.global_variables()[0]
    assert effects.variables(build(graph)) == list(by_name)


def test_asking_adds_nothing_to_the_graph(graph):
    y = wrapper_layer(inputs(2), flag("tensor"))
    graph.finalize()
    built = build(graph)
    effects.variables_read(built, [y])
    assert assigned_by_all(graph) == STATISTICS
