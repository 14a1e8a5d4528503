"""What a client agrees to when it joins: shown before its keys are made."""

import contextlib
from collections.abc import Iterator

from fedcollm.config import ModelConfig, RunConfig
from fedcollm.config.paths import is_path
from fedcollm.config.words import terms_in_words
from fedcollm.deploy.certificates import authority_fingerprint
from fedcollm.deploy.invitations import Invitation
from fedcollm.errors import UserError
from fedcollm.federation.secagg.settings import smallest_sum
from fedcollm.printing import visible


def terms(invitation: Invitation, config: RunConfig) -> list[tuple[str, str]]:
    """Return all that a client agrees to, as (subject, sentence). Nothing is left out, cut or hidden.

    Args:
        invitation: the invitation, which another party wrote.
        config: the configuration in it.
    """
    member = invitation.membership
    lines = [
        ("you are", f"client {member.client} of run {member.run}"),
        ("server", f"{member.address}, with the authority {authority_fingerprint(invitation.authority.encode())}"),
        ("model", _model(config.slm)),
        ("your data", _data(config)),
        ("work", _work(config)),
        *(("what leaves", sentence) for sentence in _leaves(config)),
        ("privacy", _privacy(config)),
        ("facts", ", ".join(f"{name}: {value}" for name, value in member.facts.items()) or "none"),
        *(("agreed", sentence) for sentence in terms_in_words(config)),
    ]
    return [(subject, visible(sentence)) for subject, sentence in lines]


def _model(slm: ModelConfig) -> str:
    adapter = slm.adapter.model_dump(mode="json", exclude={"start"})
    rest = ", ".join(f"{key}: {value}" for key, value in adapter.items() if key != "kind" and value not in (False, {}))
    if is_path(slm.source):
        place = "from your own copy of that model"
    elif slm.source == ModelConfig().source:
        place = "which comes with a Python package"
    else:
        place = "which is DOWNLOADED from the model hub unless it is there already; take it only from whom you trust"
    return f"an adapter of kind {slm.adapter.kind} ({rest}) for {slm.source}, {place}"


def _data(config: RunConfig) -> str:
    from fedcollm.data.client_files import data_in_words  # it loads torch

    shape = config.task.format
    values = {} if shape is None else shape.model_dump(mode="json", exclude_defaults=True)
    prompt = f", put together as the prompt {values.pop('prompt')}" if "prompt" in values else ""
    columns = ", ".join(f"{name}: {value}" for name, value in values.items())
    return f"{data_in_words(config.task)}{prompt}{f' ({columns})' if columns else ''}; it stays with you"


def _work(config: RunConfig) -> str:
    rounds, epochs = config.federation.rounds, config.client.epochs
    if config.control is not None:
        return "no training: statistics of your examples are computed once"
    own = ", and once more at the end for an adapter that you keep" if config.client.personal else ""
    return f"{rounds} round{'s' * (rounds > 1)} of fine-tuning, {epochs} epoch{'s' * (epochs > 1)} each{own}"


def _leaves(config: RunConfig) -> Iterator[str]:
    """Yield what leaves the client, and who can read it."""
    secure = config.federation.secure_aggregation
    if secure.enabled:
        least = smallest_sum(config)
        yield f"a masked update in every round; the server learns only the sum over at least {least} clients"
    else:
        yield "YOUR OWN UPDATE IN EVERY ROUND, which the server can read; training data can be reconstructed from it"
    if buckets := config.statistics.buckets:
        yield (
            f"a profile of your examples, once{', in a sum' if secure.enabled else ''}: the share of each label and of "
            f"each length, and of each of {buckets} buckets that their contents fall into; whoever guesses a text can "
            "see whether its bucket is empty"
        )
    if config.statistics.ridge is not None:
        yield f"statistics of your examples (counts of words and labels), once{', in a sum' if secure.enabled else ''}"
    if config.federation.privacy is None:
        scored = config.evaluation.clients != "never" or config.client.held_out > 0
        numbers = "the number of your examples, the training loss" + (" and a score" if scored else "")
        yield numbers + (", in sums" if secure.enabled else "")


def _privacy(config: RunConfig) -> str:
    section = config.federation.privacy
    if section is None:
        return "no differential privacy: what the models learn of your data is not bounded"
    numbers = f"clip {section.clip:g}, noise {section.noise_multiplier:g}, δ {section.delta:g}"
    with contextlib.suppress(UserError):
        from fedcollm.runs.build_clients import build_privacy  # it loads torch

        privacy = build_privacy(config)
        if privacy is not None:
            numbers = f"ε {privacy.epsilon(config.federation.rounds):.3g} after all rounds, {numbers}"
    return f"differential privacy of each {section.level} ({numbers})"
