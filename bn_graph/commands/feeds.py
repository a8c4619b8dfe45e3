"""What the commands feed to a graph: arrays of examples from files, and single values ``NAME=VALUE``."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from bn_graph.commands import CommandError
from bn_graph.graphs.errors import one_line
from bn_graph.tf1 import tf

__all__ = ["batch_size_of", "batches", "examples", "files", "placeholders", "resolve", "singles", "unfed"]

_SAVER_INPUTS = re.compile(r"(^|/)save(_\d+)?/(filename|Const)(_\d+)?$")


def placeholders(graph: tf.Graph) -> list[tf.Tensor]:
    """The placeholders of a graph, those of its savers aside."""
    ops = [op for op in graph.get_operations() if op.type.startswith("Placeholder")]
    return [op.outputs[0] for op in ops if not _SAVER_INPUTS.search(op.name)]


def resolve(graph: tf.Graph, name: str) -> tf.Tensor:
    """The tensor that `name` stands for: its full name, with or without port, or the end of one placeholder's name.

    Raises:
        CommandError: there is none, or more than one placeholder ends so.
    """
    try:
        return graph.get_tensor_by_name(name if ":" in name else f"{name}:0")
    except (KeyError, ValueError):
        pass
    known = placeholders(graph)
    ending = [tensor for tensor in known if tensor.op.name.endswith(f"/{name.removesuffix(':0')}")]
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise CommandError(
            f"{name} may be any of {', '.join(tensor.op.name for tensor in ending)}; give the full name."
        )
    listed = ", ".join(describe(tensor) for tensor in known) or "none"
    raise CommandError(f"The graph has no tensor named {name}. Its placeholders: {listed}.")


def describe(tensor: tf.Tensor) -> str:
    """Name, dtype and shape."""
    dims = tensor.shape.as_list() if tensor.shape.rank is not None else None
    shape = "shape unknown" if dims is None else f"[{', '.join('?' if dim is None else str(dim) for dim in dims)}]"
    return f"{tensor.name.removesuffix(':0')} ({tensor.dtype.base_dtype.name}, {shape})"


def singles(graph: tf.Graph, pairs: Sequence[str]) -> dict[str, np.ndarray]:
    """The values of ``NAME=VALUE`` arguments, by names of tensors.

    Raises:
        CommandError: no such tensor, or the value isn't one of its dtype, or the tensor isn't a scalar.
    """
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name and equals and text):
            raise CommandError(f"--feed {pair}: expected NAME=VALUE, as in --feed keep_prob=1.0.")
        tensor = resolve(graph, name)
        if tensor.name in values:
            raise CommandError(f"--feed {pair}: {tensor.name} has been given a value already.")
        if tensor.shape.rank not in (0, None):
            raise CommandError(f"--feed {pair}: {describe(tensor)} is no scalar; put its values into the data.")
        values[tensor.name] = _scalar(pair, text, tensor)
    return values


def _scalar(pair: str, text: str, tensor: tf.Tensor) -> np.ndarray:
    dtype = tensor.dtype.base_dtype
    try:
        if dtype.is_bool:
            return np.array({"true": True, "1": True, "false": False, "0": False}[text.lower()])
        if dtype.is_floating or dtype.is_integer:
            number = float(text) if dtype.is_floating else int(text)
            value = np.array(number).astype(dtype.as_numpy_dtype)
            if dtype.is_integer and int(value) != number:
                raise OverflowError
            return value
    except (KeyError, ValueError, OverflowError) as error:
        kind = "true or false" if dtype.is_bool else f"a number of dtype {dtype.name}"
        raise CommandError(f"--feed {pair}: {describe(tensor)} takes {kind}, got {text!r}.") from error
    raise CommandError(f"--feed {pair}: {describe(tensor)} takes neither a number nor true or false.")


def files(path: str | os.PathLike) -> list[str]:
    """The file at `path`; of a directory the ``.npz`` and ``.npy`` files in it, in the order of their names.

    Raises:
        CommandError: a directory that can't be read, or has none.
    """
    if not os.path.isdir(path):
        return [os.fspath(path)]
    try:
        found = sorted(name for name in os.listdir(path) if name.endswith((".npz", ".npy")))
    except OSError as error:
        raise CommandError(f"{path} can't be read: {error.strerror or error}.") from error
    if not found:
        raise CommandError(f"The directory {path} has no .npz or .npy files.")
    return [os.path.join(path, name) for name in found]


def examples(graph: tf.Graph, path: str | os.PathLike, lone: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file, by the names of the tensors that they are for, in those tensors' dtypes.

    Args:
        graph: whose tensors the arrays' names name, as `resolve` says.
        path: of a file as ``np.savez`` writes it; all arrays have as many entries along their first axis.
        lone: the tensor that the array of an ``.npy`` file is for, which is mapped and not read; None if it may be none.

    Raises:
        CommandError: it can't be read as such; an array has a dtype or shape that its tensor doesn't take, or is empty.
    """
    data: dict[str, np.ndarray] = {}
    for name, array in _arrays(path, lone).items():
        tensor = resolve(graph, name)
        if tensor.name in data:
            raise CommandError(f"{path}: {tensor.name} is there twice, once as {name}.")
        data[tensor.name] = _fitted(f"{path}: {name}", array, tensor)
    lengths = {name: len(array) for name, array in data.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name.removesuffix(':0')} {length}" for name, length in lengths.items())
        raise CommandError(f"{path}: the arrays have different numbers of examples: {listed}.")
    return data


def _arrays(path: str | os.PathLike, lone: str | None) -> dict[str, np.ndarray]:
    try:
        if lone is not None and os.fspath(path).endswith(".npy"):
            return {lone: np.load(path, mmap_mode="r", allow_pickle=False)}
        with open(path, "rb") as file:
            opened = np.load(file, allow_pickle=False)
            if not isinstance(opened, np.lib.npyio.NpzFile):
                raise CommandError(
                    f"{path} holds a single array; save it with its placeholder's name: np.savez(path, x=…)."
                )
            arrays = {name: opened[name] for name in opened.files}
    except CommandError:
        raise
    except OSError as error:
        raise CommandError(f"{path} can't be read: {error.strerror or error}.") from error
    except Exception as error:  # zipfile, zlib and NumPy each have several kinds for damaged files
        raise CommandError(f"{path} is no file of plain arrays: {one_line(error)}") from error
    strange = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    if strange or not arrays:
        raise CommandError(f"{path} holds {'something that is no array: ' + strange[0] if strange else 'no arrays'}.")
    return arrays


def _fitted(where: str, array: np.ndarray, tensor: tf.Tensor) -> np.ndarray:
    """`array` in the tensor's dtype."""
    dtype = tensor.dtype.base_dtype
    if array.ndim == 0:
        raise CommandError(
            f"{where} is a single value, where the first axis must be the examples; pass it with --feed."
        )
    if array.size == 0:
        raise CommandError(f"{where} is empty: its shape is {list(array.shape)}.")
    if tensor.shape.rank is not None:
        expected = [None, *tensor.shape.as_list()[1:]]
        if tensor.shape.rank == 0 or not tf.TensorShape(expected).is_compatible_with(array.shape):
            raise CommandError(f"{where} has shape {list(array.shape)}, which {describe(tensor)} doesn't take.")
    if dtype == tf.string:
        fits, converted = array.dtype.kind in "SU", array.astype(object)
    elif dtype.as_numpy_dtype is None or not (
        dtype.is_bool or dtype.is_floating or dtype.is_integer or dtype.is_complex
    ):
        fits, converted = False, array
    else:
        fits = array.dtype.kind in "biufc" and (
            np.can_cast(array.dtype, dtype.as_numpy_dtype, "same_kind")
            or (dtype.is_floating and array.dtype.kind in "biuf")
        )
        converted = array.astype(dtype.as_numpy_dtype, copy=False) if fits else array
        fits = fits and not (dtype.is_integer and not np.array_equal(converted, array))
    if not fits:
        raise CommandError(f"{where} is {array.dtype}, whose values {describe(tensor)} doesn't take.")
    return converted


def batch_size_of(
    graph: tf.Graph, data: Mapping[str, np.ndarray], wanted: int | None, default: int, *, is_all: bool = True
) -> int:
    """How many examples to feed together: what the placeholders' shapes fix, or `wanted`, or `default`.

    Raises:
        CommandError: they contradict each other, or `data` has fewer examples than that and `is_all` that there is.
    """
    shapes = {name: graph.get_tensor_by_name(name).shape for name in data}
    fixed = {name: shape[0] for name, shape in shapes.items() if shape.rank and shape.as_list()[0] is not None}
    sizes = {int(getattr(size, "value", size)) for size in fixed.values()} | ({wanted} if wanted else set())
    if len(sizes) > 1:
        listed = ", ".join(describe(graph.get_tensor_by_name(name)) for name in fixed)
        raise CommandError(f"The batch size is fixed by the graph: {listed}; {wanted or 'one size'} doesn't fit that.")
    size = sizes.pop() if sizes else default
    length = len(next(iter(data.values()))) if data else 0
    if is_all and data and fixed and length < size:
        raise CommandError(f"The graph takes batches of {size} examples, and the data has {length}.")
    return size


def batches(shards: Iterable[Mapping[str, np.ndarray]], size: int, whole: bool) -> Iterator[dict[str, np.ndarray]]:
    """The examples in order, `size` at a time, over the ends of shards; a smaller last batch is left out if `whole`.

    Args:
        shards: each with arrays of one length. None is referred to when the next one is asked for.
        size: of a batch.
        whole: whether no batch may be smaller.
    """
    rest: dict[str, np.ndarray] = {}
    for data in shards:
        start = size - _length(rest) if rest else 0
        if rest:
            rest = {name: np.concatenate([array, data[name][:start]]) for name, array in rest.items()}
            if _length(rest) < size:
                continue
            yield rest
        end = start + (_length(data) - start) // size * size
        for first in range(start, end, size):
            # A copy, since a batch that somebody still has would hold the whole shard.
            yield {name: np.array(array[first : first + size]) for name, array in data.items()}
        rest = {name: np.array(array[end:]) for name, array in data.items()} if end < _length(data) else {}
        del data
    if rest and not whole:
        yield rest


def _length(data: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(data.values())))


def unfed(graph: tf.Graph, needed: set[str], fed: Sequence[str]) -> list[tf.Tensor]:
    """The placeholders (without default) among the ops `needed` that are not among the tensors `fed`."""
    return [
        tensor
        for tensor in placeholders(graph)
        if tensor.op.name in needed and tensor.name not in fed and tensor.op.type != "PlaceholderWithDefault"
    ]
