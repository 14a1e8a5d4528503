"""Classification of the user's own recordings, with classifiers whose head may be a fresh one."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedcollm.config import ModelConfig
from fedcollm.modalities.audio.classification import AudioTask
from fedcollm.modalities.audio.classifiers import AudioClassifiers
from fedcollm.modalities.audio.features import Extractor, Features
from fedcollm.modalities.audio.models import AUDIO_MODELS, features_of
from fedcollm.modalities.audio.recordings import Reader
from fedcollm.modalities.facts import class_names, clip_seconds
from fedcollm.models.made import network_name


class AudioFileTask(AudioClassifiers, AudioTask):
    """The modality of the user's own recordings with classes.

    Args:
        name: name of the task, for reports.
        classes: names of the classes, in the order of the columns of the logits.
        slm: the section of the SLM.
        llm: the section of the LLM; None at a client, which has none.
        longest: the longest clip in seconds; longer ones are cut off at their end, also at what either model takes.

    Raises:
        UserError: a model has no feature extractor, or the two need different sampling rates.
    """

    def __init__(
        self, name: str, classes: Sequence[str], slm: ModelConfig, llm: ModelConfig | None, longest: float = 30.0
    ):
        small = self.features_of(slm, longest)
        large = None if llm is None or llm.source == slm.source else self.features_of(llm, longest)
        AudioTask.__init__(self, name, classes, small, large)
        shared = Reader(self.reader.rate, min(longest, self.reader.longest))
        for role in ("slm", "llm"):
            self.of(role).reader = shared

    def features_of(self, section: ModelConfig, longest: float) -> Features:
        """Return what turns clips into a model's inputs.

        Raises:
            UserError: the source has no feature extractor.
        """
        place = self.place(section)
        return features_of(place) if network_name(place) in AUDIO_MODELS else Extractor(place, longest)


def audio_task_for_client(name: str, slm: ModelConfig, facts: Mapping[str, Any]) -> AudioFileTask:
    """Return the modality of a deployed client, which has only the SLM.

    Args:
        name: name of the task, for reports.
        slm: the section of the SLM.
        facts: `AudioTask.facts` of the SLM's modality, as the server computed it.

    Raises:
        UserError: the SLM can't be read, or facts are missing or invalid.
    """
    return AudioFileTask(name, class_names(name, facts), slm, None, clip_seconds(name, facts))
