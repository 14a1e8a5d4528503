"""No key of the configuration is silent: report, `check` and the cache of a comparison's first round know each."""

import html
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from rich.console import Console

from fedcollm.cli.check_tables import settings_table
from fedcollm.config import RunConfig, Section
from fedcollm.config.baselines import changed
from fedcollm.config.phrases import PHRASES
from fedcollm.config.words import EFFECT, FACTS, everything_in_words, facts_in_words, settings_in_words
from fedcollm.messages import RoundRecord
from fedcollm.report.html import render
from fedcollm.report.runs import Method, Run


@dataclass(frozen=True)
class Change:
    """Another value of a key, and a configuration in which it takes effect.

    Attributes:
        value: the other one.
        around: keys that must have other values than the default ones, before and after.
        beside: keys that have to change with it.
    """

    value: Any
    around: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, Any] = field(default_factory=dict)


PRIVATE = {
    "federation.aggregation": "uniform",
    "federation.privacy": {
        "level": "example",
        "clip": 1.0,
        "noise_multiplier": 1.0,
        "delta": 1e-5,
        "sampling_rate": 0.1,
    },
}
SECURE = {"federation.secure_aggregation.enabled": True}
FORMAT = {"task.format": {"prompt": "{a}", "answer": "b"}}
SPEECH = {"task.format": {"audio": "a", "transcript": "c"}}
CONTROL = {"control": {"features": "ngrams"}, "server.epochs": 0, "federation.rounds": 1}
ADAM = {"federation.server_optimizer.kind": "fedadam"}
TRAINING = {
    "epochs": 2,
    "batch_size": 4,
    "gradient_accumulation": 2,
    "learning_rate": 0.5,
    "schedule": "linear",
    "warmup_ratio": 0.5,
    "weight_decay": 0.5,
    "betas": (0.5, 0.5),
    "max_grad_norm": 0.5,
}
ROUND = {**TRAINING, "micro_batch_size": 8}
ADAPTER = {
    "kind": "dora",
    "rank": 4,
    "alpha": 8.0,
    "dropout": 0.5,
    "targets": ["q_proj"],
    "options": {"use_rslora": True},
    "freeze_a": True,
    "core": True,
    "start": Path("trained"),
}
MODEL = {
    "source": "another",
    "layers": 5,
    "mlp_share": 0.5,
    "dtype": "float32",
    "attention": "eager",
    "gradient_checkpointing": True,
    "device_map": "balanced",
    "quantization": "int8",
    "pretrain_epochs": 1,
}
HEALING = {
    **TRAINING,
    "schedule": "cosine",
    "text": "notes.txt",
    "size": 4800,
    "words": 16,
    "objective": "next_token",
    "seed": 1,
}
CLEANING = {"task.cleaning": {}}
LABELS = {"server.pseudo_labels": {}, "task.unlabelled_size": 8}

#: Which data and models a run has, and when it scores them: no part of the method. Instead of in the method's words
#: they are in the page's configuration and, measured, in its sections on data and accuracy.
INPUTS = {
    "name": Change("mine"),  # of the run
    "seed": Change(1),  # of all that is random; the page names it in the heading of its configuration
    "device": Change("cpu"),  # where it is computed; the page's environment has what was taken
    "log_steps": Change(True),  # what is written beside the run; it changes no result
    "task.name": Change("arc_easy"),  # which data
    "task.path": Change(Path("/data")),
    "task.format.prompt": Change("{b}", FORMAT),
    "task.format.paraphrases": Change(["About {a}:"], FORMAT | {"client.augmentation": {}}),
    "task.format.image": Change("b", {"task.format": {"image": "a", "answer": "c"}}),
    "task.format.audio": Change("b", {"task.format": {"audio": "a", "answer": "c"}}),
    "task.format.transcript": Change("b", SPEECH),
    "task.format.longest_seconds": Change(2.0, SPEECH),
    "task.format.language": Change("en", SPEECH),
    "task.format.boxes": Change("voc", {"task.format": {"boxes": "coco"}}),
    "task.format.answer": Change("c", FORMAT),
    "task.format.choices": Change(["x", "y"], FORMAT),
    "task.format.group": Change("d", FORMAT),
    "task.format.messages": Change("b", {"task.format": {"messages": "a"}}),
    "task.format.answer_is": Change("position", {"task.format": {"prompt": "{a}", "answer": "b", "choices": "c"}}),
    "task.format.encoding": Change("cp1252", FORMAT),
    "task.format.delimiter": Change(";", FORMAT),
    "task.format.skip_unanswered": Change(True, FORMAT),
    "task.format.chat": Change(True, FORMAT),
    "task.format.joiner": Change("", FORMAT),
    "task.format.max_new_tokens": Change(7, FORMAT),
    "task.max_length": Change(7),
    "task.clients": Change(5),  # how it is split
    "task.partition.kind": Change("iid"),
    "task.partition.alpha": Change(0.5),
    "task.partition.shards": Change(3, {"task.partition.kind": "shards"}),
    "task.partition.with_public": Change(True, {"task.partition.kind": "pooled"}),
    "task.private_size": Change(7),
    "task.public_size": Change(7),
    "task.unlabelled_size": Change(7),
    "task.test_size": Change(7),
    "task.cleaning.duplicates": Change("exact", CLEANING),  # what each client does to it
    "task.cleaning.labels": Change("relabel", CLEANING),
    "task.cleaning.judge": Change("slm", CLEANING),
    "task.cleaning.personal": Change("mask", CLEANING),
    **{  # which models
        f"{role}.{key}": Change(value, {f"{role}.heal": {}} if key == "mlp_share" else {})
        for role in ("llm", "slm")
        for key, value in MODEL.items()
    },
    **{f"{role}.layer_choice": Change("block", {f"{role}.heal": {}, f"{role}.layers": 5}) for role in ("llm", "slm")},
    **{
        f"{role}.heal.{key}": Change(value, {f"{role}.heal": {}})
        for role in ("llm", "slm")
        for key, value in HEALING.items()
    },
    "evaluation.every": Change(2),  # when they are scored, and how many examples at once
    "evaluation.clients": Change("never"),
    "evaluation.batch_size": Change(7),
    "evaluation.exhibits": Change(3),
}

#: Keys of the method itself.
METHOD = {
    **{f"{role}.adapter.{key}": Change(value) for role in ("llm", "slm") for key, value in ADAPTER.items()},
    **{f"{side}.{key}": Change(value) for side in ("client", "server") for key, value in ROUND.items()},
    "client.loss": Change("generalized"),
    "client.loss_q": Change(0.5, {"client.loss": "generalized"}),
    "client.loss_weights": Change((0.5, 0.5), {"client.loss": "symmetric"}),
    "client.loss_trim": Change(0.25),
    "client.proximal": Change(0.5),
    "client.ranks": Change([2, 4]),
    "client.held_out": Change(0.5, {"client.held_out": 0.2, "federation.aggregation": "held_out"}),
    "client.personal": Change(True),
    "client.augmentation.kinds": Change({"word_dropout": 0.25}, {"client.augmentation": {}}),
    "client.augmentation.strength": Change(2.0, {"client.augmentation": {}}),
    "server.unlabelled_per_round": Change(4, {"task.unlabelled_size": 8}),
    "server.even_labels": Change(True),
    "server.pseudo_labels.features": Change("slm", LABELS),
    "server.pseudo_labels.columns": Change(64, LABELS),
    "server.pseudo_labels.ridge": Change(1.0, LABELS),
    "server.pseudo_labels.labels": Change("drawn", LABELS),
    "server.pseudo_labels.teachers": Change(["regression"], LABELS),
    "server.pseudo_labels.always": Change(True, LABELS),
    "server.distillation.weight": Change(0.5),
    "server.distillation.llm_weight": Change(0.5),
    "server.distillation.temperature": Change(2.0),
    "server.distillation.divergence": Change("reverse_kl"),
    "server.distillation.teach_where_better": Change(True),
    "server.distillation.gate": Change("reliability"),
    "server.distillation.warmup_rounds": Change(2),
    "server.distillation.across_tokenizers": Change(True),
    "server.fresh_slm_epochs": Change(2),
    "server.layer_transfer": Change(0.5),
    "federation.rounds": Change(2),
    "federation.fraction": Change(0.5),
    "federation.participants": Change(["0", "1"]),
    "federation.aggregation": Change("uniform"),
    "federation.faulty": Change(0, {"federation.aggregation": "median"}),
    "federation.clip_to_median": Change(2.0),
    "federation.clip_norm": Change(2.0),
    "federation.max_drop": Change(0.1),
    "federation.upload": Change("float16"),
    "federation.server_optimizer.kind": Change("fedavgm"),
    "federation.server_optimizer.learning_rate": Change(0.5),
    "federation.server_optimizer.momentum": Change(0.5, ADAM),
    "federation.server_optimizer.decay": Change(0.5, ADAM),
    "federation.server_optimizer.tau": Change(0.5, ADAM),
    "federation.download": Change("int4"),
    "federation.min_clients": Change(2),
    "federation.deadlines.training": Change(5.0),
    "federation.deadlines.phase": Change(5.0, SECURE),
    "federation.deadlines.absence": Change(5.0),
    "federation.max_update_norm": Change(5.0),
    "federation.max_adapter_value": Change(5.0),
    "federation.max_adapter_norm": Change(5.0),
    "federation.max_loss": Change(5.0),
    "federation.secure_aggregation.enabled": Change(True),
    "federation.secure_aggregation.threshold": Change(3, SECURE),
    "federation.secure_aggregation.value_range": Change(2.0, SECURE),
    "federation.secure_aggregation.bits": Change(16, SECURE),
    "federation.secure_aggregation.max_weight": Change(8, SECURE),
    "federation.secure_aggregation.simulate_quantization": Change(True),
    "federation.profile": Change(True),
    "federation.privacy.level": Change("client", SECURE | PRIVATE, {"federation.privacy.sampling_rate": None}),
    "federation.privacy.clip": Change(2.0, PRIVATE),
    "federation.privacy.noise_multiplier": Change(2.0, PRIVATE),
    "federation.privacy.delta": Change(1e-6, PRIVATE),
    "federation.privacy.sampling_rate": Change(0.2, PRIVATE),
    "control.features": Change("constant", CONTROL),
    "control.columns": Change(64, CONTROL),
    "control.ridge": Change(1.0, CONTROL),
}
CHANGES = INPUTS | METHOD


def keys(section: type[Section] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Every leaf of the configuration, also of optional sections."""
    for name, info in section.model_fields.items():
        types = (info.annotation, *get_args(info.annotation))
        inner = [one for one in types if isinstance(one, type) and issubclass(one, Section)]
        if inner:
            yield from keys(inner[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


#: Sections that are null by default and may have all their defaults, with what they need.
SWITCHES = {
    "llm.heal": Change({}),
    "slm.heal": Change({}),
    "task.format": Change({}),
    "client.augmentation": Change({}),
    "task.cleaning": Change({}),
    "server.pseudo_labels": Change({}, {"task.unlabelled_size": 8}),
}


def switches(section: type[Section] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Every section that is null by default and has a default for each of its keys."""
    for name, info in section.model_fields.items():
        for kind in (info.annotation, *get_args(info.annotation)):
            if isinstance(kind, type) and issubclass(kind, Section):
                if info.default is None and not any(inner.is_required() for inner in kind.model_fields.values()):
                    yield f"{prefix}{name}"
                yield from switches(kind, f"{prefix}{name}.")


def before_and_after(key: str) -> tuple[RunConfig, RunConfig]:
    change = (CHANGES | SWITCHES)[key]
    before = changed(RunConfig(), change.around)
    after = changed(before, {key: change.value, **change.beside})
    assert before != after
    return before, after


def test_every_key_has_another_value_here():
    assert CHANGES.keys() == set(keys()) - {"schema_version"}  # which has no other one


def test_every_section_that_is_switched_on_is_here():
    assert SWITCHES.keys() == set(switches())


@pytest.mark.parametrize("key", [*METHOD, "server.pseudo_labels"])
def test_report_says_every_key_of_the_method(key):
    before, after = ([*facts_in_words(one), *settings_in_words(one)] for one in before_and_after(key))
    assert before != after


@pytest.mark.parametrize("key", [*INPUTS, "llm.heal", "slm.heal", "task.cleaning"])
def test_report_shows_every_key_of_data_and_models(key):
    _, config = before_and_after(key)
    run = Run(Path("run"), config, [RoundRecord(0, {"slm": 0.5})])
    page = render([Method("mine", (run,))])
    shown = re.search(r"<pre[^>]*>(.*?)</pre>", page, re.DOTALL)
    assert shown
    assert RunConfig.model_validate(yaml.safe_load(html.unescape(shown[1]))) == config


@pytest.mark.parametrize("key", [*CHANGES, *SWITCHES])
def test_check_says_every_key(key):
    texts = []
    for config in before_and_after(key):
        sink = io.StringIO()
        Console(file=sink, width=200).print(settings_table(config))
        texts.append(sink.getvalue())
    assert texts[0] != texts[1]
    before, after = map(everything_in_words, before_and_after(key))
    assert before != after


@pytest.mark.parametrize("key", [*CHANGES, *SWITCHES])
def test_cache_of_the_first_round_depends_on_every_key_that_is_not_listed(key):
    from fedcollm.runs.sharing import WITHOUT_INFLUENCE_ON_ROUND_1, round_1_settings

    section, _, rest = key.partition(".")
    listed = WITHOUT_INFLUENCE_ON_ROUND_1.get(section, ())
    is_listed = listed is True or rest.split(".")[0] in listed
    before, after = map(round_1_settings, before_and_after(key))
    assert (before == after) == is_listed


def test_tables_of_words_name_no_key_that_is_gone():
    known = set(keys())
    assert PHRASES.keys() <= known | SWITCHES.keys()
    assert known >= FACTS
    assert [name for name in EFFECT if not any(f"{key}.".startswith(f"{name}.") for key in known)] == []


def test_only_free_fields_of_adapters_have_no_phrase():
    assert METHOD.keys() - FACTS - PHRASES.keys() == {"llm.adapter.options", "slm.adapter.options"}


@pytest.mark.parametrize("key", sorted(key for key in METHOD.keys() - FACTS if isinstance(PHRASES.get(key), str)))
def test_phrase_has_a_place_for_its_value(key):
    assert ("{" in PHRASES[key]) == (METHOD[key].value is not True)
