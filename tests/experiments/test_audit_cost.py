"""The benchmark of the audit: its graphs are what they claim, and its checks can say no. No time is judged here."""

import json
from pathlib import Path

import pytest

from bn_graph.audit import audit
from experiments.benchmarks import audit_cost
from experiments.machinery.programs import UsageError

SIZES = (1_500, 4_000)
LAYERS = 3  # of batch norm in a block: two fused, one written out


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit_cost, "SIZES", SIZES)
        patch.setattr(audit_cost, "ROUNDS", 1)
        patch.setattr(audit_cost, "IMPORTS_UP_TO", SIZES[0])
        assert audit_cost.main(["--output", str(output)]) == 0
    return output


@pytest.fixture(scope="module")
def result(output) -> dict:
    return json.loads((output / audit_cost.NAME / "result.json").read_text())


def test_a_graph_has_about_the_nodes_asked_for_and_tensorflow_imports_all_of_them(result):
    for each, size in zip(result["measured"], SIZES, strict=True):
        assert each["nodes"] == pytest.approx(size, rel=0.4)  # whole blocks of some 900 nodes
    small, large = result["measured"]
    assert small["import"]["nodes"] == small["nodes"]
    assert "import" not in large  # above IMPORTS_UP_TO


def test_the_audit_finds_every_layer_of_every_block_and_no_error(tmp_path):
    path = tmp_path / "three.meta"
    block = audit_cost.make_block()
    of_block = len(block.nodes) + 2 * len(block.saved)
    nodes = audit_cost.write_graph(path, 3 * of_block)
    report = audit(str(path))
    assert report.nodes == nodes
    assert len(report.layers) == 3 * LAYERS
    assert not report.errors
    assert {(row.training, row.inference, row.updates, row.saved) for row in report.layers} == {
        ("batch", "population", "2 of 2", "yes")
    }


def test_what_is_written_is_what_was_measured(result):
    for each in result["measured"]:
        cost = each["audit"]
        assert cost["nodes_per_second"] == pytest.approx(each["nodes"] / cost["seconds"], rel=0.05)  # rounded to 1 ms
        assert 10 < cost["megabytes"] < 500
        assert cost["layers"] % LAYERS == 0 and cost["layers"] > 0
    (growth,) = result["checks"]["growth"]
    small, large = result["measured"]
    assert growth["times_the_nodes"] == pytest.approx(large["nodes"] / small["nodes"], abs=0.01)
    assert result["checks"]["bounds"] == []  # no graph of that size is here
    assert all(each["parse"]["seconds"] <= each["audit"]["seconds"] for each in result["measured"])


def test_the_audit_runs_without_tensorflow_and_takes_less_memory_for_it(result):
    small = result["measured"][0]
    assert small["audit"]["megabytes"] < small["import"]["megabytes"] / 2


def measured(nodes: int, seconds: float, megabytes: int = 100) -> dict:
    cost = {"seconds": seconds, "megabytes": megabytes, "nodes_per_second": round(nodes / seconds)}
    return {"nodes": nodes, "bytes": 100 * nodes, "audit": cost, "parse": cost}


@pytest.mark.parametrize(
    ("nodes", "seconds", "megabytes", "kept"),
    [
        (100_300, 2.9, 499, True),
        (100_300, 3.1, 100, False),
        (100_300, 1.0, 501, False),
        (1_000_100, 7.9, 1199, True),
        (1_000_100, 8.1, 1199, False),
        (1_000_100, 7.9, 1201, False),
    ],
)
def test_the_bounds_are_of_time_and_of_memory(nodes, seconds, megabytes, kept):
    checks = audit_cost.checks([measured(nodes, seconds, megabytes)])
    (bound,) = checks["bounds"]
    assert bound["kept"] is kept and bound["nodes"] == round(nodes, -5) and checks["growth"] == []


@pytest.mark.parametrize(
    ("times", "seconds", "kept"), [(10, 11.9, True), (10, 12.1, False), (5, 5.9, True), (5, 7, False)]
)
def test_growth_is_judged_as_for_ten_times_the_nodes(times, seconds, kept):
    (growth,) = audit_cost.checks([measured(10_000, 1.0), measured(times * 10_000, seconds)])["growth"]
    assert growth == {"nodes": times * 10_000, "times_the_nodes": times, "times_the_time": seconds, "kept": kept}


def test_the_table_says_no_where_a_bound_is_not_kept(result):
    slow = [measured(10_000, 0.1), measured(100_000, 4.0)]
    table = audit_cost.summarize({"measured": slow, "checks": audit_cost.checks(slow)})
    assert "in less than 3 s and 500 MB: NO" in table
    assert "10 times the nodes, 40 times the time (at most 12 for 10): NO" in table
    assert "not imported" in table


def test_a_measuring_process_that_fails_is_named_with_its_last_line(tmp_path):
    with pytest.raises(UsageError, match=r"the audit of nothing\.meta failed: .*nothing\.meta"):
        audit_cost._measure("audit", tmp_path / "nothing.meta")
