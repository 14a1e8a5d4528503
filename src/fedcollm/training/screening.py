"""Judge the labels of a client's examples anew in every round, and train without those that are probably wrong.

There are two judges, each of which has seen little of the labels that it judges. The first is a regression on features
that need no network, out of fold: it has seen the other examples of this client. The second is the SLM as the round
begins, which was taught by all clients and the server. Where the first has few right labels to learn from, the second
knows more, and where the SLM has not learned the task yet, the first does. The belief in a class is the geometric mean
of the two. A label is suspected as in an audit (`data/audit/labels.py`), if many of the client's labels are wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedcollm.config import CleaningConfig
from fedcollm.data.audit.labels import flagged, noise_share, with_rare
from fedcollm.data.cleaning import Known, known_labels, own_beliefs
from fedcollm.errors import UserError
from fedcollm.modalities.base import Modality
from fedcollm.progress import say
from fedcollm.training.fine_tuning import predict

#: Estimated share of wrong labels below which all examples are trained on. What is doubted in good data are the hard
#: examples, which a model learns most from: on `icd10` up to an eighth of the labels of a client without wrong ones.
LEAST_SHARE = 0.25

_SMALLEST = 1e-6  # probability


@dataclass(frozen=True)
class Screen:
    """Judges the labels of one client's examples in every round.

    Attributes:
        known: the examples whose labels are judged, and their labels.
        own: [N, C] how likely each of the client's classes is, by the judge that is trained on its examples.
        labels: what happens to examples whose label is probably wrong: `drop` or `relabel`.
        batch_size: number of examples per batch of the SLM.
    """

    known: Known
    own: NDArray[np.float64] = field(repr=False)
    labels: str = "drop"
    batch_size: int = 64

    def screened(self, modality: Modality, slm: nn.Module, examples: Sequence[Any], where: str) -> Sequence[Any]:
        """Return the examples that a round trains on.

        Args:
            modality: the modality of the SLM.
            slm: the SLM as the round begins; it is left in evaluation mode.
            examples: the client's examples, those that the screen was built for.
            where: name of the round, for progress.

        Raises:
            UserError: no example is left.
        """
        some = [examples[place] for place in self.known.places]
        beliefs = predict(modality, slm, some, self.batch_size, f"{where}, labels")
        names = [str(some[0].with_answer(i).label) for i in range(len(beliefs[0]))]
        columns = [names.index(name) for name in self.known.classes]
        taught = np.stack([belief.double().cpu().numpy()[columns] for belief in beliefs])
        both = np.sqrt(np.clip(self.own, _SMALLEST, 1) * np.clip(taught, _SMALLEST, 1))
        both = both / both.sum(1, keepdims=True)
        share, noise = noise_share(self.known.codes, with_rare(self.known.codes, both))
        found = flagged(self.known.codes, both, noise) if share >= LEAST_SHARE else []
        if not found:
            return examples
        say(f"{where}: {len(found)} of {len(some)} labels are probably wrong, {_DONE[self.labels]}")
        left = self.known.mended(examples, found, self.labels)
        if not left:
            raise UserError(
                f"{where}: all labels are probably wrong. Mend the data, or set task.cleaning.labels: keep."
            )
        return left


_DONE = {"drop": "and their examples are left out of this round", "relabel": "and changed in this round"}


def build_screen(
    settings: CleaningConfig | None, examples: Sequence[Any], modality: Modality, batch_size: int, seed: int
) -> Screen | None:
    """Return the screen of one client; None if labels are not judged in every round, or can't be.

    Args:
        settings: how the client cleans its examples.
        examples: the examples that it trains on.
        modality: the modality of the SLM.
        batch_size: number of examples per batch of the SLM.
        seed: the run's seed.

    Raises:
        UserError: the labels are no classes, or the modality does not tell how likely each class is.
    """
    if settings is None or not settings.in_rounds:
        return None
    if type(modality).probabilities is Modality.probabilities:
        raise UserError(
            f"task.cleaning.judge {settings.judge} needs {type(modality).__name__}.probabilities, which is missing. "
            "Define it, or set task.cleaning.judge: ngrams."
        )
    known = known_labels(examples)
    if known is None:
        return None
    return Screen(known, own_beliefs(known, examples, modality, seed), settings.labels, batch_size)
