"""Rules that refuse combinations of keys with losses and a distillation that are robust against wrong labels."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedcollm.config.run import RunConfig


def robust_losses(config: "RunConfig") -> Iterator[str]:
    """Yield what a loss of the clients other than plain cross-entropy can't be combined with."""
    if config.client.has_plain_loss or config.control is not None or config.federation.participants == []:
        return
    key, value, instead = config.client.changed_loss
    privacy = config.federation.privacy
    if privacy is not None and privacy.level == "example":
        yield (
            f"federation.privacy: level example trains with DP-SGD, whose loss is the cross-entropy, and {key} is "
            f"{value}. Set {key}: {instead}, or level: client"
        )
    if config.task.has_boxes:
        yield (
            f"{key} {value} needs a cross-entropy over classes or tokens, and detection has a loss of its own. "
            f"Set {key}: {instead}"
        )


def gate(config: "RunConfig") -> Iterator[str]:
    """Yield what a gate of the distillation can't be combined with."""
    key, value = "server.distillation.gate", config.server.distillation.gate
    if value == "none" or not config.server.epochs or config.control is not None:
        return
    if (why := config.task.no_choices) is not None:
        yield f"{key} {value} needs choices, but {why} have none. Set {key}: none"
    if not config.task.public_size:
        yield (
            f"{key} {value} measures reliability on labelled public examples, and task.public_size is 0. Raise it, or "
            f"set {key}: none"
        )
