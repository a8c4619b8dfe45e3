"""The errors that commands report in one line."""

__all__ = ["AuditError", "BnGraphError"]


class BnGraphError(ValueError):
    """What was given can't be used: the message says what was wrong and what to do. Commands catch this class."""


class AuditError(BnGraphError):
    """A file that can't be read as what it is, or a question that can't be asked of it; the message is one line."""
