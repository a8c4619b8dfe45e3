"""What is in UPDATE_OPS, and what a scope takes of it; and verdicts that change with the measurement."""

from experiments import collected_update_ops

PAGE = collected_update_ops


def test_a_prefix_takes_another_models_updates_and_the_library_does_not(result):
    cases = {(each["models"], each["scope"]): each for each in result["scopes"]}
    assert cases["bn, bn2", "bn"]["foreign"] == cases["net.1, net_1", "net.1"]["foreign"] == 2
    assert cases["bn, opened twice", "bn/"]["missed"] == 2
    assert all(each["library_right"] for each in cases.values())


def test_unscoped_updates_want_the_other_models_placeholder(result):
    found = result["consequences"]
    assert found["the document's two, with scope"] == "runs"
    assert "batchnorm/train_mode" in found["the document's two, without scope"]
    assert found["bn beside bn2, both in training"] == "runs; moves bn2's statistics"


def test_article_10_depends_on_the_printout(result, verdict):
    result["printed"]["rank 4, ref variables"] = collected_update_ops.DOCUMENT_PRINTS
    assert verdict(result, "article-10") == "holds, with a trap: today's default prints something else"
    result["printed"]["rank 4, resource variables"] = collected_update_ops.DOCUMENT_PRINTS
    assert verdict(result, "article-10") == "holds"
    result["printed"] = {"rank 4, resource variables": [], "rank 2, resource variables": ["something"]}
    assert verdict(result, "article-10") == "does not hold"


def test_solver_10_depends_on_what_each_scope_takes(result, verdict):
    result["scopes"][0]["foreign"] = 2
    assert verdict(result, "solver-10") == "does not hold"
    for case in result["scopes"]:
        case |= {"missed": 0, "foreign": 0}
    assert verdict(result, "solver-10") == "holds"
