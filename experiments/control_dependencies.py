"""Control dependencies: what they order, and what they leave to chance.

Document: article ("tensorflow中的batchnorm"), section *tf.control_dependencies*. Claim article-09.

    make control-dependencies

A variable is 1, another is 2, and an op assigns 10 to the first. Their sum is taken in four ways: beside the assign,
beside it while it runs too, under a control dependency on it, and under that dependency but from a value that was read
before. Each way is run in a few hundred fresh sessions with two threads, for both kinds of variable, and the outcomes
are counted.

Changed from the document: it runs one session. Its first sum is never run together with its assign (the name
``update_op`` is bound again before the session), so its 3 is certain; the sum *beside a running assign* is added here,
since that is what people take the first one to show.
"""

from collections import Counter
from pathlib import Path

from bn_graph.tf1 import tf
from experiments.machinery import harness
from experiments.machinery.figures import BLUE, GREY, ORANGE, figure
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_with_a_trap

# The document's.
FIRST, SECOND, ASSIGNED = 1, 2, 10
# With one thread the executor has one order, and a race can't show.
THREADS = 2

KINDS = {"ref": False, "resource": True}
WAYS = {
    "alone": "without the assign",
    "beside": "beside the running assign",
    "after": "under a control dependency",
    "read before": "under it, value read before",
}

# A race that shows once in a hundred is missed by 500 with probability 0.7%.
FULL = Mode(own={"sessions": 500})
QUICK = Mode(own={"sessions": 100})


def run(settings: Settings) -> dict:
    sessions = settings.own["sessions"]
    outcomes = {kind: count_sums(use_resource, sessions) for kind, use_resource in KINDS.items()}
    return {"outcomes": outcomes, "sessions": sessions}


# --- article-09: the sums ---------------------------------------------------------------------------------------------
def count_sums(use_resource: bool, sessions: int) -> dict[str, dict[str, int]]:
    """How often each sum came out, for each way of taking it."""
    with tf.Graph().as_default():
        first = tf.Variable(FIRST, use_resource=use_resource)
        second = tf.Variable(SECOND, use_resource=use_resource)
        read_before = first.read_value()
        # As in the document: a sum, an assign, and the sum again under a dependency on it.
        beside = tf.add(first, second)
        assign = tf.assign(first, ASSIGNED)
        with tf.control_dependencies([assign]):
            after = tf.add(first, second)
            # The add waits for the assign; the read that feeds it was made before the block, and does not.
            late_sum = tf.add(read_before, second)
        fetches = {"alone": [beside], "beside": [beside, assign], "after": [after], "read before": [late_sum]}
        initialize = tf.global_variables_initializer()
        config = tf.ConfigProto(inter_op_parallelism_threads=THREADS, intra_op_parallelism_threads=1)
        counted = {way: Counter() for way in fetches}
        for way, fetch in fetches.items():
            for _ in harness.progress_bar(f"{'resource' if use_resource else 'ref'}, {WAYS[way]}")(range(sessions)):
                # A fresh session each time: one that has run its step before tends to repeat its order.
                with tf.Session(config=config) as session:
                    session.run(initialize)
                    counted[way][str(session.run(fetch)[0])] += 1
    return {way: dict(counter) for way, counter in counted.items()}


def judge_article_09(result: dict) -> Verdict:
    certain = {"alone": str(FIRST + SECOND), "after": str(ASSIGNED + SECOND)}
    outcomes = result["outcomes"]

    def sums(way: str) -> str:
        texts = {kind: _in_words(outcomes[kind][way]) for kind in outcomes}
        if len(set(texts.values())) == 1:
            return next(iter(texts.values()))
        return ", and ".join(f"{text} with {kind} variables" for kind, text in texts.items())

    wrong = [
        f"{kind}, {WAYS[way]}: {_counts(outcomes[kind][way])}"
        for kind in outcomes
        for way, expected in certain.items()
        if set(outcomes[kind][way]) != {expected}
    ]
    measured = (
        f"In {result['sessions']} sessions with {' and as many with '.join(outcomes)} variables, the sum is {sums('alone')} "
        f"without the assign and {sums('after')} under the control dependency; where the assign runs beside it, it is "
        f"{sums('beside')}."
    )
    if wrong:
        return does_not_hold(measured, f"Some came out otherwise than claimed: {'; '.join(wrong)}.")
    stale = [kind for kind in outcomes if set(outcomes[kind]["read before"]) != {certain["after"]}]
    if stale:
        note = (
            f"Of a value read before the block the sum is {sums('read before')}: the dependency orders the add, and not "
            "the read that feeds it."
        )
        trap = f"a {' or '.join(stale)} variable that is read before the block may keep its old value"
        return holds_with_a_trap(trap, measured, note)
    return holds(measured, "Also of a value that is read before the block.")


def _in_words(counter: dict[str, int]) -> str:
    """As "always 3", or "3 in 187 and 12 in 313"."""
    if len(counter) == 1:
        return f"always {next(iter(counter))}"
    return " and ".join(
        f"{value} in {times}" for value, times in sorted(counter.items(), key=lambda pair: int(pair[0]))
    )


def _counts(counter: dict[str, int]) -> str:
    return " or ".join(f"{value} ({times}×)" for value, times in sorted(counter.items(), key=lambda pair: int(pair[0])))


# --- The figure -------------------------------------------------------------------------------------------------------
FIGURES = {
    "control_dependencies.png": "Without the assign the sum is always 3, under the control dependency always 12. Beside a "
    "running assign, or from a value that was read before the block, nothing is promised."
}


def draw(result: dict, folder: Path) -> None:
    """Each way of taking the sum as a bar of its outcomes, for both kinds of variable."""
    bars = [(kind, way) for way in WAYS for kind in result["outcomes"]]
    colors = {str(FIRST + SECOND): ORANGE, str(ASSIGNED + SECOND): BLUE}
    with figure(folder / "control_dependencies.png", figsize=(8, 4.2)) as (_, axis):
        for place, (kind, way) in enumerate(bars):
            left = 0.0
            for value, times in sorted(result["outcomes"][kind][way].items(), key=lambda pair: int(pair[0])):
                share = times / result["sessions"]
                axis.barh(place, share, left=left, color=colors.get(value, GREY), height=0.7)
                if share > 0.05:
                    axis.text(left + share / 2, place, value, ha="center", va="center", color="white", fontsize=11)
                left += share
        axis.set_yticks(range(len(bars)), [f"{WAYS[way]}\n({kind} variable)" for kind, way in bars])
        axis.invert_yaxis()
        axis.set_xlabel(f"share of {result['sessions']} sessions (orange: 3, blue: 12)")
        axis.grid(False)
        axis.set_title("What 1 + 2 gives, while an op assigns 10 to the first")


def summarize(result: dict) -> str:
    lines = [f"Sums over {result['sessions']} fresh sessions each:"]
    for way, title in WAYS.items():
        each = "   ".join(f"{kind}: {_counts(counts[way])}" for kind, counts in result["outcomes"].items())
        lines.append(f"  {title:<30} {each}")
    return "\n".join(lines)


if __name__ == "__main__":
    harness.run(__name__)
