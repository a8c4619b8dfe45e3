"""Identities, and where floating point breaks them: what can be judged with fixed inputs.

Documents: r2rt (*The batch normalizing transform*, *Building the graph*), solver (*Introduction*,
*class Model*), article (*batch_normalization*). Claims r2rt-03, 04, 06, 11, solver-03, 04, article-02, 03.

    make numerics

Inputs are drawn once from a seed: in float64 where an identity is asked for, in float32 where rounding is.
"""

import numpy as np

import bn_graph
from bn_graph.tf1 import legacy_layers, tf
from experiments.machinery import harness
from experiments.machinery.classifiers import losses
from experiments.machinery.fresh import evaluate
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.results import largest
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_with_a_trap

# r2rt's; the others have the same ε.
EPSILON, BATCH, UNITS = 1e-3, 60, 100
# Of the inputs: from where ε counts to where it does not.
DEVIATIONS = [1e-3, 1e-2, 0.1, 1.0, 10.0]
# Between two logits. exp(−103.97) is float32's end, exp(−87.34) that of its normal numbers.
GAPS = [10.0, 50.0, 80.0, 87.0, 88.0, 89.0, 95.0, 100.0, 103.0, 104.0, 110.0, 150.0]
# How closely the gap at which the loss breaks is looked for; and what of it may break.
GAP_TO, DOCUMENT_LOSS = 0.01, ("loss", "loss_if_right", "loss_with_gradient", "gradient")

FULL = QUICK = Mode()


def run(settings: Settings) -> dict:
    # One generator for all, so the order of these calls is part of the numbers.
    generator = np.random.default_rng(settings.seeds[0])
    return {
        "normalized": normalized_moments(generator),
        "shape": shape_of_the_distribution(generator),
        "formulas": two_formulas(generator),
        "log_softmax": document_loss(),
        "dead_relu": dead_relu(generator),
        "identity": undone_by_gamma_and_beta(generator),
        "channels": pseudo_code(generator),
        "recursion": moving_recursion(generator),
    }


def normalize(inputs: tf.Tensor, axes: list[int], epsilon: float = EPSILON) -> tf.Tensor:
    """By TensorFlow's own functions, as the documents call them; without gamma and beta."""
    mean, variance = tf.nn.moments(inputs, axes)
    return tf.nn.batch_normalization(inputs, mean, variance, None, None, epsilon)


# --- r2rt-03: mean 0 and variance 1? ----------------------------------------------------------------------------------
def normalized_moments(generator) -> list[dict]:
    rows = []
    for deviation in DEVIATIONS:
        values = generator.normal(3.0, deviation, (BATCH, UNITS))
        with tf.Graph().as_default():
            (normalized,) = evaluate(normalize(tf.constant(values), [0]))
        # What the formula says: ε keeps the variance below 1.
        expected = values.var(0) / (values.var(0) + EPSILON)
        row = {"deviation": deviation, "largest_mean": largest(normalized.mean(0))}
        row |= {"variance": float(normalized.var(0).mean())}
        rows.append(row | {"distance_from_formula": largest(normalized.var(0) - expected)})
    return rows


def judge_r2rt_03(result: dict) -> Verdict:
    rows = result["normalized"]
    largest_mean = max(row["largest_mean"] for row in rows)
    near_one = [row for row in rows if abs(row["variance"] - 1.0) < 0.01]
    variances = ", ".join(f"{row['variance']:.4f} (σ = {row['deviation']:g})" for row in rows)
    measured = f"The mean is at most {largest_mean:.0e}, and the variance, by the inputs' deviation, {variances}."
    if largest_mean >= 1e-9:
        return does_not_hold(measured, "The mean does not vanish.")
    # The document's inputs, sums of some hundred pixels with N(0, 1) weights, have deviations of 1 and more.
    if rows[-1] not in near_one:
        return does_not_hold(measured, "Not even inputs of a large deviation get a variance within 1% of 1.")
    if len(near_one) == len(rows):
        return holds(measured, "ε is small against every variance tried.")
    off = max(row["distance_from_formula"] for row in rows)
    note = f"The variance is σ²/(σ²+ε) (to {off:.0e}), which is 1 where σ² is far above ε = {EPSILON:g}."
    return holds_with_a_trap("inputs whose variance is no larger than ε get a variance well below 1", measured, note)


# --- r2rt-04: a normal distribution? ----------------------------------------------------------------------------------
def shape_of_the_distribution(generator) -> dict:
    # Exponential inputs: far from normal in both the third and the fourth moment.
    values = generator.exponential(size=(20_000, 1))
    with tf.Graph().as_default():
        (normalized,) = evaluate(normalize(tf.constant(values), [0]))

    def standardized_moment(data, order):
        return float((((data - data.mean()) / data.std()) ** order).mean())

    return {
        name: [standardized_moment(data, order) for data in (values, normalized)]
        for name, order in (("skewness", 3), ("kurtosis", 4))
    }


def judge_r2rt_04(result: dict) -> Verdict:
    (skew_before, skew_after), (kurt_before, kurt_after) = (result["shape"][each] for each in ("skewness", "kurtosis"))
    measured = (
        f"Exponential inputs have the skewness {skew_before:.4f} before and {skew_after:.4f} after, and the kurtosis "
        f"{kurt_before:.4f} before and {kurt_after:.4f} after; a normal distribution's are 0 and 3."
    )
    if abs(skew_after) < 0.1 and abs(kurt_after - 3.0) < 0.2:
        return holds(measured, "After normalizing, the third and fourth moments are a normal distribution's.")
    changed = max(abs(skew_after - skew_before), abs(kurt_after - kurt_before))
    note = f"Normalizing sets two moments; the shape stays what it was (changed by {changed:.0e}). True of inputs that are "
    return does_not_hold(measured, f"{note}normally distributed already.")


# --- r2rt-06: two formulas --------------------------------------------------------------------------------------------
def two_formulas(generator) -> list[dict]:
    rows = []
    for offset in (0.0, 256.0, 1e6):
        values = generator.normal(offset, 1.0, (BATCH, UNITS)).astype(np.float32)
        with tf.Graph().as_default():
            x = tf.constant(values)
            mean, variance = tf.nn.moments(x, [0])
            # The document's first layer, and its second.
            written_out = (x - mean) / tf.sqrt(variance + EPSILON)
            built_in = tf.nn.batch_normalization(x, mean, variance, None, None, EPSILON)
            one, other = evaluate(written_out, built_in)
        exact = values.astype(np.float64)
        exact = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + EPSILON)
        errors = {"written_out_error": largest(one - exact), "built_in_error": largest(other - exact)}
        rows.append({"offset": offset, "difference": largest(one - other)} | errors)
    return rows


def judge_r2rt_06(result: dict) -> Verdict:
    rows = result["formulas"]
    differences = ", ".join(f"{row['difference']:.0e} for inputs around {row['offset']:g}" for row in rows)
    measured = f"The two differ by at most {differences}."
    same = [row for row in rows if row["difference"] < 1e-5]
    if len(same) == len(rows):
        return holds(measured, "They agree to float32 rounding wherever the inputs lie.")
    # The document's inputs are weighted sums without a bias, which lie around 0.
    if rows[0] not in same:
        return does_not_hold(measured, "They differ by more than rounding even around 0.")
    worst = rows[-1]
    errors = f"{worst['built_in_error']:.2g}, the formula written out by {worst['written_out_error']:.2g}"
    note = f"The built-in computes x·s + (β − μ·s), whose two terms cancel: around {worst['offset']:g} it is off by {errors}."
    return holds_with_a_trap("far from 0, by many deviations, float32 tells them apart", measured, note)


# --- r2rt-11: −Σ y·log(softmax) ---------------------------------------------------------------------------------------
def document_loss() -> list[dict]:
    """For each gap, the loss of one example whose right class is behind by it: alone, and run with its gradient.

    Between the last gap at which all is finite and the first at which something is not, the place is looked for by
    halving.
    """
    rows = []
    # The graph optimizer may rewrite log(softmax) where nothing else asks for the softmax.
    for optimize in (True, False):
        with tf.Graph().as_default():
            logits = tf.placeholder(tf.float32, [1, 2])
            log_softmax = tf.log(tf.nn.softmax(logits))
            behind, ahead = tf.constant([[0.0, 1.0]]), tf.constant([[1.0, 0.0]])
            loss, loss_if_right = -tf.reduce_sum(behind * log_softmax), -tf.reduce_sum(ahead * log_softmax)
            gradient = tf.gradients(loss, logits)[0]
            # One run each: what is fetched together is computed together.
            alone = {"loss": loss, "loss_if_right": loss_if_right, "stable": tf.reduce_sum(losses(logits, behind))}
            config = tf.ConfigProto()
            config.graph_options.rewrite_options.disable_meta_optimizer = not optimize
            with tf.Session(config=config) as session:

                def measure(gap: float, session=session, logits=logits, alone=alone, both=(loss, gradient)) -> dict:
                    feed = {logits: [[gap, 0.0]]}
                    values = {name: session.run(fetch, feed) for name, fetch in alone.items()}
                    values["loss_with_gradient"], slope = session.run(both, feed)
                    values["gradient"] = slope[0, 1]
                    # As text: JSON has no NaN.
                    return {"gap": gap} | {name: repr(float(value)) for name, value in values.items()}

                found = [measure(gap) for gap in GAPS]
                finite = max(row["gap"] for row in found if not any(is_broken(row[name]) for name in DOCUMENT_LOSS))
                broken = min(row["gap"] for row in found if any(is_broken(row[name]) for name in DOCUMENT_LOSS))
                while broken - finite > GAP_TO:
                    found.append(measure(round((finite + broken) / 2, 4)))
                    if any(is_broken(found[-1][name]) for name in DOCUMENT_LOSS):
                        broken = found[-1]["gap"]
                    else:
                        finite = found[-1]["gap"]
        rows += [row | {"optimized": optimize} for row in sorted(found, key=lambda row: row["gap"])]
    return rows


def is_broken(text: str) -> bool:
    return not np.isfinite(float(text))


def judge_r2rt_11(result: dict) -> Verdict:
    rows = result["log_softmax"]

    def first_broken(name: str, optimized: bool) -> float:
        return min(
            (row["gap"] for row in rows if row["optimized"] is optimized and is_broken(row[name])), default=np.inf
        )

    first = {(name, optimized): first_broken(name, optimized) for name in DOCUMENT_LOSS for optimized in (True, False)}
    gap = min(first.values())
    if gap == np.inf:
        return holds("Every loss and gradient tried is finite.", "So they are in either form of the graph.")
    training = min(first["loss_with_gradient", True], first["gradient", True])
    alone = min(first["loss", True], first["loss_if_right", True])
    measured = (
        f"In a training step the loss or its gradient is not finite from a logit gap of {training:.2f} on; the loss alone "
        f"{'stays finite' if alone == np.inf else f'breaks at {alone:.2f}'} with the graph optimizer, and without it breaks at "
        f"{min(first['loss', False], first['loss_if_right', False]):.2f}."
    )
    stable = "not finite either" if any(is_broken(row["stable"]) for row in rows) else "finite throughout"
    note = f"From there on the softmax of the other class is 0. softmax_cross_entropy_with_logits is {stable}."
    return holds_with_a_trap(f"it becomes NaN or infinite where a logit leads by {gap:.2f}", measured, note)


# --- solver-03: ReLUs that are never active ---------------------------------------------------------------------------
def dead_relu(generator) -> dict:
    # Ten standard deviations below zero: no input of any unit is positive.
    values = generator.normal(-10.0, 1.0, (BATCH, UNITS)).astype(np.float32)
    found = {}
    with tf.Graph().as_default():
        x = tf.constant(values)
        for name, inputs in (("bare", x), ("normalized", bn_graph.batch_norm_wrapper(x, True))):
            outputs = tf.nn.relu(inputs)
            gradient = tf.gradients(tf.reduce_sum(tf.square(outputs - 1.0)), x)[0]
            active, slope = evaluate(outputs, gradient)
            found |= {f"active_{name}": float((active > 0).mean()), f"gradient_{name}": largest(slope)}
    return found


def judge_solver_03(result: dict) -> Verdict:
    found = result["dead_relu"]
    measured = (
        f"Of the units {found['active_bare']:.0%} are active, and their largest gradient is {found['gradient_bare']:.1g}; with "
        f"batch norm before the ReLU {found['active_normalized']:.0%} are, and it is {found['gradient_normalized']:.1g}."
    )
    if found["active_bare"] or found["gradient_bare"]:
        return does_not_hold(measured, "Some units are active, or some gradient is left.")
    return holds(measured, "Neither output nor gradient is left, so the units can't come back by themselves.")


# --- solver-04: gamma and beta that undo the layer --------------------------------------------------------------------
def undone_by_gamma_and_beta(generator) -> dict:
    values, others = generator.normal(3.0, 2.0, (BATCH, UNITS)), generator.normal(3.0, 2.0, (BATCH, UNITS))
    gamma, beta = np.sqrt(values.var(0) + EPSILON), values.mean(0)

    def distance(inputs: np.ndarray, normalized_by: np.ndarray) -> float:
        outputs = gamma * (inputs - normalized_by.mean(0)) / np.sqrt(normalized_by.var(0) + EPSILON) + beta
        return largest(outputs - inputs)

    in_training = {"same_batch": distance(values, values), "another_batch": distance(others, others)}
    return in_training | {"population": distance(others, values)}


def judge_solver_04(result: dict) -> Verdict:
    found = result["identity"]
    measured = (
        f"The batch whose μ and σ these are is given back to {found['same_batch']:.0e}, another of the same distribution to "
        f"{found['another_batch']:.2g}; at inference by those μ and σ, all are to {found['population']:.0e}."
    )
    if found["same_batch"] > 1e-9:
        return does_not_hold(measured, "Not even the batch whose moments they are is given back.")
    if found["another_batch"] > 1e-3:
        note = "The document's μ and σ are the batch's. Gamma and beta are constants, and the next batch has other moments."
        return holds_with_a_trap("in training the next batch is not given back", measured, note)
    return holds(measured, "Other batches of the distribution are given back as well.")


# --- article-02: the pseudo-code over channels ------------------------------------------------------------------------
def pseudo_code(generator) -> dict:
    """The article's loop over channels, without ε as it is printed, against the layer."""
    values = generator.normal(size=(4, 5, 5, 3))
    looped = np.empty_like(values)
    for channel in range(3):
        x = values[..., channel]
        looped[..., channel] = (x - x.mean()) / np.sqrt(x.var())
    with tf.Graph().as_default():
        # The printed loop has no ε; the layer needs one.
        (layer,) = evaluate(normalize(tf.constant(values), [0, 1, 2], epsilon=1e-12))
    constant = np.full((4, 5, 5), 7.0)
    with np.errstate(invalid="ignore"):
        broken = (constant - constant.mean()) / np.sqrt(constant.var())
    return {"largest_difference": largest(looped - layer), "constant_channel_is_nan": bool(np.isnan(broken).all())}


def judge_article_02(result: dict) -> Verdict:
    found = result["channels"]
    constant = "NaN" if found["constant_channel_is_nan"] else "numbers"
    measured = (
        f"The pseudo-code and TensorFlow differ by at most {found['largest_difference']:.0e}; of a constant channel the "
        f"pseudo-code makes {constant}."
    )
    if found["largest_difference"] > 1e-9:
        return does_not_hold(measured, "They differ by more than rounding.")
    if found["constant_channel_is_nan"]:
        note = "The pseudo-code leaves out ε, and divides 0 by 0 there."
        return holds_with_a_trap("a constant channel becomes NaN", measured, note)
    return holds(measured, "Constant channels included.")


# --- article-03: the moving average -----------------------------------------------------------------------------------
def moving_recursion(generator) -> dict:
    batches = generator.normal(2.0, 3.0, (5, 8, 4)).astype(np.float32)
    decay = 0.99
    mean = np.zeros(4)
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        x = tf.placeholder(tf.float32, [None, 4])
        forms = {
            "tf.layers": legacy_layers().batch_normalization(x, momentum=decay, training=True, name="theirs"),
            "batch_norm_wrapper": bn_graph.batch_norm_wrapper(x, True, decay=decay, name="ours"),
        }
        fetches = [*forms.values(), tf.get_collection(tf.GraphKeys.UPDATE_OPS)]
        moving = [variable for variable in bn_graph.moving_statistics() if variable.op.name.endswith("moving_mean")]
        session.run(tf.global_variables_initializer())
        for batch in batches:
            session.run(fetches, {x: batch})
            mean = mean * decay + batch.astype(np.float64).mean(0) * (1 - decay)
        return {name: largest(value - mean) for name, value in zip(forms, session.run(moving), strict=True)}


def judge_article_03(result: dict) -> Verdict:
    distances = " and ".join(f"{distance:.0e} for {name}" for name, distance in result["recursion"].items())
    measured = f"After 5 batches the distance from the recursion in float64 is at most {distances}."
    if max(result["recursion"].values()) < 1e-6:
        return holds(measured, "Both follow it to float32 rounding.")
    return does_not_hold(measured, "At least one library does something else.")


if __name__ == "__main__":
    harness.run(__name__)
