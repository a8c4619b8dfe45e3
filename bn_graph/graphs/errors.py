"""The errors that commands report in one line, and the line that anybody else's error is reported in."""

import itertools

__all__ = ["AuditError", "BnGraphError", "NoModelError", "one_line"]


class BnGraphError(ValueError):
    """What was given can't be used: the message says what was wrong and what to do. Commands catch this class."""


class AuditError(BnGraphError):
    """A file that can't be read as what it is, or a question that can't be asked of it; the message is one line."""


class NoModelError(AuditError):
    """A file that by its name could be a model's and is none: empty, a pointer to the file, a pickle."""


def one_line(error: BaseException) -> str:
    """The line of an exception's text that says what is wrong, with a full stop; its type if it has no text."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error  # str() of a KeyError is in quotes
    lines = [line.strip() for line in str(getattr(error, "message", None) or text).splitlines() if line.strip()]
    # TensorFlow puts what is wrong above the failed node, and below where its op was made.
    above_node = [line for line, after in itertools.pairwise(lines) if after.startswith("[[{{node")]
    return (above_node or lines or [type(error).__name__])[0].rstrip(".") + "."
