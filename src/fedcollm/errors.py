"""The exceptions that fedcollm raises on purpose, grouped by who has to act on them."""

import contextlib
from collections.abc import Generator, Mapping

#: Stands before a key of a model's section in the text of a `UserError`, where the role of the model is not known.
SECTION = "\0"


class FedcollmError(Exception):
    """Base class of every exception that fedcollm raises on purpose."""


class UserError(FedcollmError):
    """The user's input is wrong. The message says what is wrong, the value, and what to do. Exit code 2.

    Attributes:
        section: what takes the place of `SECTION` in the message, such as `slm.`; see `in_section`.
    """

    section: str = ""

    def __str__(self) -> str:
        return super().__str__().replace(SECTION, self.section)


class Interrupted(FedcollmError):  # noqa: N818
    """Ctrl-C or SIGTERM stopped the run. Finished work is saved, and the message says how to resume. Exit code 130."""


class NonFiniteError(UserError):
    """A loss, a weight or an output of a model became NaN or infinite. The last good state is kept."""


class RefusalError(FedcollmError):
    """A party stops because a message from another party violates the protocol."""


class RoundFailedError(UserError):
    """A round could not be completed. The last good state is kept, and `--resume` retries the round."""


class SpoiledRoundError(RoundFailedError):
    """A round's sum can't be opened any more: the clients have helped to open it once, and must not for others.

    The run goes on with the next round.

    Attributes:
        culprits: ids of the clients that are to blame, which the rounds to come leave out.
        lost: client id to the reason why it was lost.
    """

    def __init__(self, message: str, culprits: tuple[str, ...] = (), lost: Mapping[str, str] | None = None):
        super().__init__(message)
        self.culprits: tuple[str, ...] = culprits
        self.lost: dict[str, str] = dict(lost or {})


@contextlib.contextmanager
def in_section(role: str) -> Generator[None, None, None]:
    """Let the errors of the `with` block name the keys of a role's section, such as `slm.layers` instead of `layers`.

    >>> with in_section("slm"):
    ...     raise UserError(f"{SECTION}layers: 9 is too many.")
    Traceback (most recent call last):
    fedcollm.errors.UserError: slm.layers: 9 is too many.
    """
    try:
        yield
    except UserError as error:
        error.section = error.section or f"{role}."
        raise
