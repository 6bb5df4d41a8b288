"""What can go wrong other than by a fault of the program; each has a message of one line."""


class UserError(ValueError):
    """Something the user can put right; printed as one line, without a traceback."""


class PageError(ValueError):
    """One page cannot be used; its message is the reason listed beside the page."""


class RunError(RuntimeError):
    """A run cannot go on, for a reason that lies in its data or its machine; also one line."""


class StoppedError(Exception):
    """A run was asked to stop and has saved its state; `signal` is the number of the signal."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
