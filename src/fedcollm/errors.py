"""The exceptions that fedcollm raises on purpose, grouped by who has to act on them."""


class FedcollmError(Exception):
    """Base class of every exception that fedcollm raises on purpose."""


class UserError(FedcollmError):
    """The user's input is wrong. The message says what is wrong, the value, and what to do. Exit code 2."""


class Interrupted(FedcollmError):  # noqa: N818
    """Ctrl-C or SIGTERM stopped the run. Finished work is saved, and the message says how to resume. Exit code 130."""


class NonFiniteError(UserError):
    """A loss became NaN or infinite. The last good state is kept."""


class RefusalError(FedcollmError):
    """A party stops because a message from another party violates the protocol."""


class RoundFailedError(UserError):
    """A round could not be completed. The last good state is kept, and `--resume` retries the round."""
