"""Build the task of speech recognition that fits a pair of models: CTC or Whisper, as their configurations say."""

from collections.abc import Mapping
from typing import Any

from fedcollm.config import ModelConfig
from fedcollm.errors import UserError
from fedcollm.modalities.audio.ctc import CtcTask
from fedcollm.modalities.audio.speech import SpeechTask
from fedcollm.modalities.audio.speech_models import speech_directory, speech_kind
from fedcollm.modalities.audio.whisper import WhisperTask, known_tokens, language_prompt
from fedcollm.modalities.facts import clip_seconds, token_names, whole_number

#: Bounds on the tokens of a transcript (see `speech_models.most_tokens`), and of what Whisper is told before it.
MOST_TOKENS, MOST_PROMPT = 224, 16


def build_recognizer(
    name: str, slm: ModelConfig, llm: ModelConfig, longest: float, language: str | None = None
) -> SpeechTask:
    """Return the task of speech recognition for a pair of models, without loading their weights.

    Args:
        name: name of the task, for reports.
        slm: the section of the SLM.
        llm: the section of the LLM.
        longest: the longest clip in seconds; longer ones are cut off at their end.
        language: the code of the language that Whisper is told, if any.

    Raises:
        UserError: a model can't be read, is no model of speech, or does not fit the other one.
    """
    kinds = {role: speech_kind(section.source) for role, section in (("slm", slm), ("llm", llm))}
    if kinds["slm"] != kinds["llm"]:
        raise UserError(
            f"{name}: slm.source {slm.source!r} is a {kinds['slm']} model and llm.source {llm.source!r} a "
            f"{kinds['llm']} model, whose outputs can't be compared. Choose two models of one kind."
        )
    small, large = speech_directory(slm.source), speech_directory(llm.source)
    if kinds["slm"] == "whisper":
        return WhisperTask(name, small, large, longest, language_prompt(language, small))
    if language is not None:
        raise UserError(
            f"task.format.language {language!r} is for Whisper, and {slm.source!r} is a CTC model, which is told no "
            "language. Set task.format.language: null."
        )
    return CtcTask(name, small, large, longest)


def build_recognizer_for_client(name: str, slm: ModelConfig, facts: Mapping[str, Any]) -> SpeechTask:
    """Return the task of speech recognition of a deployed client, which has only the SLM.

    Args:
        name: name of the task, for reports.
        slm: the section of the SLM.
        facts: `build_recognizer(...).of("slm").facts()`, as the server computed it.

    Raises:
        UserError: the SLM can't be read, or facts are missing or invalid.
    """
    kind, place = speech_kind(slm.source), speech_directory(slm.source)
    longest = clip_seconds(name, facts)
    if kind == "ctc":
        return CtcTask(name, place, None, longest)
    most = whole_number(name, facts, "most_tokens", 1, MOST_TOKENS)
    prompt = token_names(name, facts, "prompt", known_tokens(place), MOST_PROMPT)
    return WhisperTask(name, place, None, longest, prompt, most)
