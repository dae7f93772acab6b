class UserError(Exception):
    """A mistake of the user's making, told in a sentence: what, where, what to do (exit code 2)."""


class DataError(UserError):
    """An image or label that turned out bad after the run had begun."""
