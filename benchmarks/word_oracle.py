"""A word oracle: does the answer of a client tell whether a word occurs in its private examples?

Usage: python -m benchmarks.word_oracle [--trials 200] [--floor 1] [--modes plain,example,secure]

A dishonest server sends every client the same θ, whose LoRA in the first MLP overflows if one word occurs in a text,
and switches off a single neuron otherwise. Clients of `icd10` with eight examples each, and the shipped smollm2-135m
cut to two layers, are asked as a server asks them: in bytes, through `ClientEndpoint`, plainly (`plain`), under
example-level privacy (`example`), and in whole sessions of secure aggregation (`secure`). Two words are used in turn,
in random order, each held by one of two clients, so that each client is the holder as often as not and differences
between the clients cancel out. The other clients only fill up the sessions.

The form of the answers is compared byte by byte, and their times by the Mann-Whitney test, the Kolmogorov-Smirnov test,
and the area under the ROC curve (AUC, 0.5 for a guess), with and without a floor (`fedcollm deploy client
--answer-after`). The table is printed, and all figures are written to `benchmarks/results/word_oracle.json`.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from scipy import stats
from torch import nn

from benchmarks.word_gate import direction, gate, variants
from fedcollm.config import RunConfig
from fedcollm.config.loading import load_config
from fedcollm.data.catalogue import build_modality, load_pool
from fedcollm.data.partition import split
from fedcollm.federation.secagg.aggregator import SecureAggregator
from fedcollm.messages import Adapter, Answer, Request, TrainRequest, adapter_bytes
from fedcollm.models.adapters import read_adapter
from fedcollm.runs.build_clients import ClientData, build_client, secure_client, secured
from fedcollm.runs.build_models import build_slm, set_backends
from fedcollm.seeding import RunIdentity
from fedcollm.transports.endpoint import ClientEndpoint
from fedcollm.transports.wire import decode, encode, longest_message

RESULT = Path(__file__).parent / "results" / "word_oracle.json"
RUN = "word-oracle"
_LIMITS = ("max_adapter_value", "max_adapter_norm", "max_loss")

#: Name of a way to take part to what it changes in the configuration.
MODES: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "example": {
        "federation.aggregation": "uniform", "client.max_grad_norm": None, "federation.privacy": {
            "level": "example", "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5, "sampling_rate": 0.5
        }
    },
    "secure": {"federation.secure_aggregation.enabled": True},
}  # fmt: skip


def configuration(mode: str, layers: int, examples: int, **changes: Any) -> RunConfig:
    """A run of four clients with equally many examples, which has no limits on θ unless `changes` sets them."""
    sizes = {"private_size": examples, "public_size": 16, "unlabelled_size": 0, "test_size": 16}
    values = {f"task.{key}": value for key, value in sizes.items()} | {f"federation.{key}": None for key in _LIMITS}
    values |= {"slm.layers": layers, "slm.heal": None, "task.partition.kind": "iid", "federation.rounds": 10_000}
    values |= {"client.batch_size": 4}
    return load_config("icd10", **values | MODES[mode] | changes)


@dataclass
class Parties:
    """Four clients in one process, and what the server and the attacker have: the base model and the public texts."""

    config: RunConfig
    floor: float = 0.0
    base: Any = None
    logs: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.config
        self.parts = split(load_pool(config.task, config.seed), config.task, config.seed)
        self.examples: Mapping[str, list[Any]] = self.parts.private
        self.modality, self.slm = self.base or base_of(config)
        self.theta = _initial(self.slm)
        keys = {name: Ed25519PrivateKey.generate() for name in self.examples}
        roster = {name: key.public_key() for name, key in keys.items()}
        self.settings = secured(config, roster)
        self.endpoints: dict[str, ClientEndpoint] = {}
        for name, own in self.examples.items():
            self.logs[name] = []
            used = own if name in self.watched else own[:1]
            data = ClientData(self.modality, self.slm, used, self.parts.test, journal=self.logs[name].append)
            client: Any = build_client(config, RunIdentity(RUN, config.seed), name, data, list(self.examples))
            if self.settings is not None:
                client = secure_client(config, client, self.settings, keys[name], {})
            floor = self.floor if name in self.watched else 0.0
            self.endpoints[name] = ClientEndpoint(
                name, client, longest_message(adapter_bytes(self.theta)), answer_after=floor
            )

    @property
    def watched(self) -> list[str]:
        """The two clients whose answers are compared."""
        return list(self.examples)[:2]

    def words(self) -> dict[str, int]:
        """For each watched client, the most frequent token of a whole word that no other client has."""
        texts = {name: [self.modality.encoded(one).prompt for one in own] for name, own in self.examples.items()}
        found: dict[str, int] = {}
        for name in self.watched:
            others = {token for other, own in texts.items() if other != name for text in own for token in text}
            own = [token for text in texts[name] for token in text if token not in others]
            whole = [t for t in own if (w := self.modality.tokenizer.decode([t]))[0] == " " and len(w) > 4]
            found[name] = statistics.mode(whole)
        return found


def base_of(config: RunConfig) -> tuple[Any, Any]:
    """The modality and the SLM, which all parties of all modes can share."""
    set_backends(config)
    modality = build_modality(config.task, config.slm, config.llm, False).of("slm")
    with tempfile.TemporaryDirectory() as place:
        return modality, build_slm(config, modality, [], Path(place))


_fresh: dict[int, Adapter] = {}


def _initial(slm: nn.Module) -> Adapter:
    return _fresh.setdefault(id(slm), {name: tensor.clone() for name, tensor in read_adapter(slm).items()})


def form(data: bytes) -> str:
    """Everything in an answer but values: its length, its kind, the keys of its head, and its tensors."""
    head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    version, _, text = head.pop("__metadata__")["fedcollm"].partition("\n")
    fields = json.loads(text)
    keys = {key: sorted(value) if isinstance(value, dict) else type(value).__name__ for key, value in fields.items()}
    tensors = [(name, one["dtype"], one["shape"]) for name, one in sorted(head.items())]
    return json.dumps([len(data), version, fields["kind"], keys, tensors])


@dataclass
class Watch:
    """Asks clients in bytes, and notes the form and the seconds of each answer."""

    parties: Parties
    forms: dict[str, list[str]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def ask(self, requests: Mapping[str, Request]) -> Iterator[Answer]:
        """As a transport does."""
        for client, request in requests.items():
            data = encode(request)
            start = time.perf_counter()
            answer = self.parties.endpoints[client](data)
            self.seconds.setdefault(client, []).append(time.perf_counter() - start)
            self.forms.setdefault(client, []).append(form(answer))
            yield decode(answer, 10**9)


def asked(parties: Parties, theta: Adapter, index: int, clients: Sequence[str]) -> Watch:
    """One round with this θ, as an aggregator asks for it."""
    watch, request = Watch(parties), TrainRequest(index, theta, evaluate=False, run=RUN)
    if parties.settings is not None:
        SecureAggregator(parties.settings).aggregate(watch.ask, request, list(parties.examples))
    else:
        list(watch.ask(dict.fromkeys(clients, request)))
    return watch


@dataclass
class Trial:
    """What one client answered in one round."""

    client: str
    holds: bool
    seconds: float
    later_seconds: float
    form: str
    failed: bool


def trials(parties: Parties, thetas: Mapping[str, Adapter], count: int, seed: int = 0) -> list[Trial]:
    """`count` trials of a holder, and as many of a client that does not hold the word, interleaved at random."""
    draw, done = random.Random(seed), list[Trial]()
    turns = [name for name in parties.watched for _ in range(count // 2)]
    draw.shuffle(turns)
    for index, holder in enumerate(turns, start=1):
        before = {name: len(lines) for name, lines in parties.logs.items()}
        clients = draw.sample(parties.watched, 2)
        watch = asked(parties, thetas[holder], index, clients)
        for name in clients:
            first, *later = watch.seconds[name]
            failed = len(parties.logs[name]) > before[name]
            done.append(Trial(name, name == holder, first, sum(later), json.dumps(watch.forms[name]), failed))
    return done


def compared(holder: Sequence[float], other: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """How well seconds tell a holder from others: two tests (p values), and the AUC with a 95 % bootstrap interval."""
    one, two = np.asarray(holder), np.asarray(other)

    def auc(a: np.ndarray, b: np.ndarray) -> float:
        return float(stats.mannwhitneyu(a, b).statistic) / (len(a) * len(b))

    draw = np.random.default_rng(seed)
    again = [auc(draw.choice(one, len(one)), draw.choice(two, len(two))) for _ in range(2000)]
    return {
        "mann_whitney_p": float(stats.mannwhitneyu(one, two, alternative="two-sided").pvalue),
        "kolmogorov_smirnov_p": float(stats.ks_2samp(one, two).pvalue),
        "auc": auc(one, two),
        "auc_95": [float(bound) for bound in np.quantile(again, [0.025, 0.975])],
        "median_seconds": [float(np.median(one)), float(np.median(two))],
    }


def refusals(parties: Parties) -> list[dict[str, Any]]:
    """What all clients answer to each variant of θ, each distinct answer once, and whose training failed."""
    word, rows = parties.words()[parties.watched[0]], list[dict[str, Any]]()
    for index, (name, theta) in enumerate(variants(parties.theta, direction(parties, word)).items(), start=1):
        for lines in parties.logs.values():
            lines.clear()
        watch = Watch(parties)
        answers = list(watch.ask(dict.fromkeys(parties.endpoints, TrainRequest(index, theta, evaluate=False, run=RUN))))
        reasons = {getattr(answer, "reason", "an update") for answer in answers}
        failed = [client for client, lines in parties.logs.items() if lines]
        rows.append({"theta": name, "answers": sorted(reasons), "failed at": failed})
    return rows


def measured(mode: str, given: argparse.Namespace, base: Any, floor: float) -> dict[str, Any]:
    """One line of the table: `count` trials of holders and of others, and how well they can be told apart."""
    parties = Parties(configuration(mode, given.layers, given.examples), floor, base)
    words = parties.words()
    thetas = {name: gate(parties.theta, direction(parties, token)) for name, token in words.items()}
    for untimed, name in enumerate(parties.watched, start=1):
        asked(parties, thetas[name], untimed, parties.watched)
        if [other for other, lines in parties.logs.items() if lines] != [name] * (mode != "example"):
            raise SystemExit(f"{mode}: the gate of client {name} does not tell it from the others: {parties.logs}")
        parties.logs[name].clear()
    parties = Parties(configuration(mode, given.layers, given.examples), floor, base)
    start = time.perf_counter(), time.process_time(), os.getloadavg()[0]
    done = trials(parties, thetas, given.trials)
    medians = {name: statistics.median(one.seconds for one in done if one.client == name) for name in parties.watched}
    later = {name: statistics.median(t.later_seconds for t in done if t.client == name) for name in parties.watched}
    both = [[one for one in done if one.holds is holds] for holds in (True, False)]
    decoded = {name: parties.modality.tokenizer.decode([token]) for name, token in words.items()}
    return {
        "mode": mode,
        "floor_seconds": floor,
        "words": decoded,
        "failed": [sum(one.failed for one in side) for side in both],
        "forms": [len({(one.client, one.form) for one in side}) for side in both],
        "same_form": len({(one.client, one.form) for one in done}) == len(parties.watched),
        "times": compared(*([one.seconds - medians[one.client] for one in side] for side in both)),
        "later_times": compared(*([one.later_seconds - later[one.client] for one in side] for side in both)),
        "medians": [statistics.median(one.seconds for one in side) for side in both],
        "trials": [len(side) for side in both],
        "wall_seconds": time.perf_counter() - start[0],
        "processor_seconds": time.process_time() - start[1],
        "load": [start[2], os.getloadavg()[0]],
    }


def line(row: Mapping[str, Any]) -> str:
    """A line of the printed table."""
    times, low_high = row["times"], row["times"]["auc_95"]
    return (
        f"{row['mode']:8} floor {row['floor_seconds']:4.2f} s: failed {row['failed'][0]:3} of {row['trials'][0]} / "
        f"{row['failed'][1]:3} of {row['trials'][1]}; same form {row['same_form']}; median {row['medians'][0]:.4f} / "
        f"{row['medians'][1]:.4f} s; AUC {times['auc']:.3f} [{low_high[0]:.3f}, {low_high[1]:.3f}], Mann-Whitney "
        f"p {times['mann_whitney_p']:.2g}, Kolmogorov-Smirnov p {times['kolmogorov_smirnov_p']:.2g}"
        + (f"; later messages AUC {row['later_times']['auc']:.3f}" if row["mode"] == "secure" else "")
        + f"; load {row['load'][0]:.1f} to {row['load'][1]:.1f}"
    )


def main() -> None:
    """Measure every mode, with and without a floor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200, help="of holders, and as many of others")
    parser.add_argument("--floor", type=float, default=1.0, help="seconds")
    parser.add_argument("--layers", type=int, default=2, help="at least 2: the last computes answers only")
    parser.add_argument("--examples", type=int, default=8, help="of each client")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    base = base_of(configuration("plain", given.layers, given.examples))
    limits = {f"federation.{key}": value for key, value in zip(_LIMITS, (1000.0, 10_000.0, 10_000.0), strict=True)}
    refused = refusals(Parties(configuration("plain", given.layers, given.examples, **limits), 0.0, base))
    for row in refused:
        print(f"θ {row['theta']}: {'; '.join(row['answers'])}; training failed at {row['failed at'] or 'no client'}")
    rows: list[dict[str, Any]] = []
    for mode in given.modes.split(","):
        for floor in (given.floor, 0.0):
            rows.append(measured(mode, given, base, floor))
            print(line(rows[-1]), flush=True)
            date = f"{datetime.now(UTC):%Y-%m-%d %H:%M UTC}"
            outcome = {
                "date": date,
                "layers": given.layers,
                "examples": given.examples,
                "rows": rows,
                "limits": refused,
            }
            given.out.write_text(json.dumps(outcome, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
