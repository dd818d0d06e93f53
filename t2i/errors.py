"""What can go wrong, by exit code: bad input is `ValueError` (2), a run that failed is `RunFailed` (1)."""


class RunFailed(RuntimeError):
    """A run that was asked for correctly but cannot go on: non-finite loss, non-finite pixels, a full disk."""
