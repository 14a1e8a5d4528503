"""What can go wrong, split by whose turn it is to act."""


class FedcollmError(Exception):
    """Base of every error that fedcollm raises on purpose."""


class UserError(FedcollmError):
    """The input is wrong: the message says what, the value, and what to do. Exit code 2."""


class Interrupted(FedcollmError):  # noqa: N818
    """Ctrl-C or SIGTERM; what was finished is saved, and the message says how to go on. Exit code 130."""


class NonFiniteError(UserError):
    """A loss became NaN or infinite; the last good state is kept."""


class RefusalError(FedcollmError):
    """A party does not go on, because what another one sent breaks the protocol."""


class RoundFailedError(UserError):
    """A round could not be finished; the last good state is kept, and `--resume` tries the round again."""
