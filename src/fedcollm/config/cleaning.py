"""The section `task.cleaning`: what each client does to its own training data before anything is trained on it."""

from typing import Literal

from fedcollm.config.base import Section


class CleaningConfig(Section):
    """How a client cleans its own training examples when it loads them. Nothing of it leaves the client."""

    duplicates: Literal["keep", "exact", "near"] = "near"
    """drop examples that are there twice with the same label; near: also those that are almost the same"""
    labels: Literal["keep", "drop", "relabel"] = "drop"
    """labels that are probably wrong: drop their examples, or give them the class that is likelier; needs classes"""
    judge: Literal["ngrams", "slm", "ngrams_slm", "ngrams_global"] = "ngrams"
    """judge of labels: features without a model, the SLM's last hidden state, both, or in every round the global SLM"""
    personal: Literal["keep", "mask"] = "keep"
    """text: mask names, phone numbers, dates of birth and the like in prompts; needs pip install 'fedcollm[audit]'"""

    @property
    def in_rounds(self) -> bool:
        """Whether labels are judged in every round, and not when the examples are loaded."""
        return self.labels != "keep" and self.judge == "ngrams_global"

    @property
    def compares(self) -> bool:
        """Whether what becomes of an example depends on other examples."""
        return self.duplicates != "keep" or self.labels != "keep"
