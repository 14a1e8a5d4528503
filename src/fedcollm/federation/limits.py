"""What a client trains, and what it lets out of a training.

A request outside these limits is refused, since that depends on the request alone. What depends on the client's data,
such as a loss or a change outside them, ends the training as a failed one, which the server can't tell from others.
"""

import math
from dataclasses import dataclass

from fedcollm.config import FederationConfig
from fedcollm.errors import NonFiniteError, RefusalError, UserError
from fedcollm.federation.aggregation.clipping import clipped
from fedcollm.federation.quantization import WORD
from fedcollm.federation.secagg.fixed_point import check_range
from fedcollm.messages import LARGEST_LOSS, Adapter, TrainRequest, distance


@dataclass(frozen=True)
class Limits:
    """The limits that a client agreed to; None sets no limit.

    Attributes:
        adapter_value: largest absolute value of θ.
        adapter_norm: largest L2 norm of a tensor of θ.
        start_loss: largest loss of θ on examples of the client, before it trains.
        update_norm: largest L2 norm of θ_k − θ.
        value_range: largest absolute value of θ_k − θ.
        clip_norm: L2 norm that a longer θ_k − θ is scaled down to, before it is compared with the limits above.
    """

    adapter_value: float | None = None
    adapter_norm: float | None = None
    start_loss: float | None = None
    update_norm: float | None = None
    value_range: float | None = None
    clip_norm: float | None = None

    @classmethod
    def of(cls, federation: FederationConfig) -> "Limits":
        """Return the limits that a configuration agrees on."""
        level = federation.privacy.level if federation.privacy else None
        secure = federation.secure_aggregation
        quantizes = secure.enabled or secure.simulate_quantization
        return cls(
            federation.max_adapter_value,
            federation.max_adapter_norm,
            None if level == "example" else federation.max_loss,  # DP-SGD hides no decision that depends on the data
            None if level == "client" else federation.max_update_norm,  # level client clips instead
            secure.largest_value if quantizes and level != "client" and secure.bits == WORD else None,
            federation.clip_norm,
        )

    def check_request(self, request: TrainRequest) -> None:
        """Refuse a θ that is larger than agreed.

        Raises:
            RefusalError: names the tensor, its value and the key.
        """
        for name, (value, norm) in request.extent.items():
            for key, found, most in (("value", value, self.adapter_value), ("norm", norm, self.adapter_norm)):
                if most is not None and not found <= most:
                    what = "value" if key == "value" else "L2 norm"
                    raise RefusalError(
                        f"tensor {name} of the global adapter has a {what} of {found:.4g}, more than "
                        f"federation.max_adapter_{key} {most:g}. Lower the learning rates, or raise that key at every "
                        "party."
                    )

    def check_start(self, where: str, loss: float) -> None:
        """Check the loss of θ on examples of the client.

        Raises:
            NonFiniteError: the loss is not finite.
            UserError: the loss is too large.
        """
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"{where}: the training loss became {loss} before the first step; the last good state is kept. Lower "
                "the learning rate, or look for broken examples."
            )
        if self.start_loss is not None and loss > self.start_loss:
            raise UserError(
                f"{where}: the loss before training is {loss:.4g}, more than federation.max_loss {self.start_loss:g}. "
                "Look for broken examples, or raise that key at every party."
            )

    def clipped(self, adapter: Adapter, theta: Adapter) -> Adapter:
        """Return θ_k, with a change that is no longer than agreed.

        Args:
            adapter: θ_k, of finite values.
            theta: θ, of the same shapes.
        """
        return adapter if self.clip_norm is None else clipped(adapter, theta, self.clip_norm)

    def check_end(self, where: str, loss: float | None, adapter: Adapter, theta: Adapter) -> None:
        """Check the loss of a training, and its change of θ.

        Args:
            where: name of the training.
            loss: its mean loss; None if it is not told.
            adapter: θ_k, in the form in which it is sent.
            theta: θ in the same form.

        Raises:
            UserError: the loss or the norm of the change is not allowed.
            RangeError: a value of the change is too large.
        """
        if loss is not None and not 0 <= loss <= LARGEST_LOSS:
            raise UserError(f"{where}: the mean loss is {loss:.4g}, and servers accept one from 0 to {LARGEST_LOSS:g}.")
        if self.value_range is not None:
            check_range({name: tensor - theta[name] for name, tensor in adapter.items()}, self.value_range)
        if self.update_norm is not None and not (norm := distance(adapter, theta)) <= self.update_norm:
            raise UserError(
                f"{where}: the adapter changed by {norm:.4g} (L2 norm), more than federation.max_update_norm "
                f"{self.update_norm:g}. Lower the learning rate, or raise that key at every party."
            )
