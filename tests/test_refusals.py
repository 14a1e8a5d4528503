"""Every kind of refusal that a user meets, word for word: `snapshots/refusals.txt`.

Elsewhere, a test pins an error's type and a key word, so that a sentence is changed at one place:

    scripts/check tests tests/test_refusals.py --update-snapshots

and read in the difference that git shows.
"""

import contextlib
import io
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import pytest
import yaml
from tests.snapshot import FOLDER, Snapshot

from fedcollm.cli.app import main
from fedcollm.config import RunConfig
from fedcollm.config.baselines import changed
from fedcollm.runs.runner import run

TITLE = (
    "What fedcollm says when it refuses. Written, not edited: "
    "scripts/check tests tests/test_refusals.py --update-snapshots"
)


@dataclass(frozen=True)
class Place:
    """Where a refusal happens.

    Attributes:
        root: an empty directory.
        config: file of a good configuration.
        data: its examples, 288 rows with the columns text, kind and site.
        models: directories of a tiny LLM and SLM.
        run: directory of a finished run of that configuration.
    """

    root: Path
    config: Path
    data: Path
    models: dict[str, str]
    run: Path

    def names(self) -> dict[str, str]:
        """Word in a command to path, which is the word again in what is said."""
        files = {"ROOT": str(self.root), "CONFIG": str(self.config), "DATA": str(self.data)}
        return files | {name.upper(): path for name, path in self.models.items()}


@dataclass(frozen=True)
class Case:
    """A command that is refused.

    Attributes:
        name: of the refusal.
        command: with words of `Place.names`.
        prepare: what is done before.
    """

    name: str
    command: str
    prepare: Callable[[Place], object] = field(default=lambda place: None)


def call(place: Place, command: str) -> tuple[int, str, str]:
    """Do a command in this process: exit code, standard output, standard error with words for paths."""
    out, err, names = io.StringIO(), io.StringIO(), place.names()
    arguments = ["fedcollm", *shlex.split(command)]
    for name, path in names.items():
        arguments = [argument.replace(name, path) for argument in arguments]
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", arguments),
        pytest.raises(SystemExit) as stop,
    ):
        main()
    said = err.getvalue()
    for name, path in sorted(names.items(), key=lambda pair: -len(pair[1])):
        said = said.replace(path, name)
    return int(stop.value.code or 0), out.getvalue(), said


def settings(*pairs: str) -> str:
    return "run CONFIG --out ROOT/run " + " ".join(f"--set {pair}" for pair in pairs)


def lines(name: str, *rows: object) -> Callable[[Place], object]:
    """Write a file of JSON lines; a text is a line as it is."""
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)

    def write(place: Place) -> None:
        file = place.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    return write


def both(*steps: Callable[[Place], object]) -> Callable[[Place], object]:
    return lambda place: [step(place) for step in steps]


def good_row(number: int, **changes: object) -> dict[str, object]:
    return {"text": f"cat {number}", "kind": ("colour", "animal")[number % 2], "site": "a"} | changes


def with_run(place: Place) -> None:
    """Put a finished run there."""
    shutil.copytree(place.run, place.root / "run")


def with_control(place: Place) -> None:
    """Put a finished run of a control there."""
    assert call(place, settings(*(f"'{pair}'" for pair in SOLVED)) + " --quiet")[0] == 0


def with_deployment(place: Place) -> None:
    """Put a deployment of three clients there."""
    assert call(place, f"{INIT} --demo --clients a,b,c --set {SECURE}")[0] == 0


def with_invitations(place: Place) -> None:
    """Put a deployment of three clients there that have not joined."""
    assert call(place, f"{INIT} --clients a,b,c --set {SECURE}")[0] == 0


def edit(name: str, change: Callable[[str], str]) -> Callable[[Place], object]:
    def edited(place: Place) -> None:
        file = place.root / name
        file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")

    return edited


SECURE = "federation.secure_aggregation.enabled=true"
FOUR = ("task.clients=4", "task.private_size=10")
UNIFORM = "federation.aggregation=uniform"
CONTROL = "control.features=ngrams"
SOLVED = (CONTROL, "server.epochs=0", "federation.rounds=1")
PROFILE = "federation.profile=true"
LABELS, UNLABELLED = "server.pseudo_labels={}", "task.unlabelled_size=8"
LEVEL_CLIENT = "federation.privacy={level: client, clip: 1, noise_multiplier: 1, delta: 1e-5}"
LEVEL_EXAMPLE = "federation.privacy={level: example, clip: 1, noise_multiplier: 1, delta: 1e-5, sampling_rate: 0.1}"

AUDIO = ("task.format.audio=file", *(f"task.format.{key}=null" for key in ("prompt", "answer", "choices")))
CONFIGURATION = [
    ("unknown key", "federation.round=3"),
    ("unknown section", "fedration.rounds=3"),
    ("number that is too small", "federation.rounds=0"),
    ("number that is none", "client.batch_size=many"),
    ("choice that is none", "federation.aggregation=average"),
    ("several errors", "client.epoch=1", "federation.rounds=-2", "slm.adapter.dropout=2"),
    ("setting without a value", "federation.rounds"),
    ("setting that is not YAML", "llm.adapter.targets=[q_proj"),
    ("participant that is no client", 'federation.participants=["9"]'),
    ("nobody trains", "federation.participants=[]", "server.epochs=0"),
    ("more clients needed than asked", "federation.min_clients=3"),
    ("secure aggregation of two", SECURE),
    ("secure aggregation with a number of its own", SECURE, "task.clients=4", "federation.min_clients=3"),
    ("threshold of secure aggregation", SECURE, *FOUR, "federation.secure_aggregation.threshold=2"),
    ("secure aggregation of 16 bits", SECURE, "task.clients=3", "federation.upload=float16"),
    ("secure aggregation of products", SECURE, "task.clients=3", "federation.aggregation=product"),
    ("privacy of clients without secure aggregation", LEVEL_CLIENT),
    ("privacy of clients with a sampling rate", LEVEL_CLIENT.replace("1e-5", "1e-5, sampling_rate: 0.1")),
    ("privacy of examples without a sampling rate", LEVEL_EXAMPLE.replace(", sampling_rate: 0.1", "")),
    ("privacy of examples with means by size", LEVEL_EXAMPLE),
    ("privacy of examples with a proximal term", LEVEL_EXAMPLE, "client.proximal=0.1", UNIFORM),
    ("privacy of examples with augmentation", LEVEL_EXAMPLE, "client.augmentation={}", UNIFORM),
    ("augmentation of another modality", "client.augmentation.kinds=[crop, word_dropout]"),
    ("augmentation that is none", "client.augmentation.kinds=[word_drop]"),
    ("augmentation more often than always", "client.augmentation.kinds={word_dropout: 1.5}"),
    ("augmentation by nothing", "client.augmentation.kinds={}"),
    ("augmentation by words", "client.augmentation.kinds=word_dropout"),
    ("augmentation by templates that are not there", "client.augmentation.kinds=[paraphrase]"),
    ("augmentation by synonyms that are not there", "client.augmentation.kinds=[synonym]"),
    ("paraphrases for nothing", 'task.format.paraphrases=["about {text}"]'),
    ("paraphrases of other columns", "client.augmentation={}", 'task.format.paraphrases=["about {site}"]'),
    ("privacy of examples with another adapter", LEVEL_EXAMPLE, "slm.adapter.kind=ia3", UNIFORM),
    ("Krum among too few clients", "federation.aggregation=krum", *FOUR),
    ("Bulyan among too few for one", "federation.aggregation=bulyan"),
    ("trust without labelled public examples", "federation.aggregation=trust", "task.public_size=0", UNLABELLED),
    ("held-out scores of nothing", "federation.aggregation=held_out"),
    ("held-out examples that nobody weighs", "client.held_out=0.2"),
    ("check without labelled public examples", "federation.max_drop=0.1", "task.public_size=0", UNLABELLED),
    ("robust rule on sums", SECURE, *FOUR, "federation.aggregation=multi_krum", "federation.faulty=0"),
    ("median norm of sums", SECURE, *FOUR, "federation.clip_to_median=2"),
    ("two clippings", LEVEL_CLIENT, SECURE, UNIFORM, *FOUR, "federation.clip_norm=2"),
    ("privacy of examples with layers computed again", LEVEL_EXAMPLE, "slm.gradient_checkpointing=true", UNIFORM),
    ("cores of packed weights", "slm.quantization=int8", "slm.adapter.core=true"),
    ("products with a server optimizer", "federation.aggregation=product", "federation.server_optimizer.kind=fedadam"),
    ("products of DoRA", "federation.aggregation=product", "slm.adapter.kind=dora"),
    ("products with a half that stays", "federation.aggregation=product", "slm.adapter.freeze_a=true"),
    ("fresh SLM without a teacher", "server.fresh_slm_epochs=1", "server.distillation.weight=0"),
    ("layer transfer without a cut", "server.layer_transfer=1"),
    ("length of images", "task.name=digits", "task.format=null", "task.max_length=64"),
    ("ranks above the adapter's", "client.ranks=[2, 16]", "federation.aggregation=product"),
    ("control that trains", CONTROL),
    ("control of what adapters have", *SOLVED, "client.ranks=[2]", "federation.upload=float16", "client.personal=true"),
    ("control of medians", *SOLVED, "federation.aggregation=median", "federation.faulty=0"),
    ("control under privacy of examples", *SOLVED, LEVEL_EXAMPLE, UNIFORM),
    ("control of free answers", *SOLVED, "task.format.choices=null"),
    ("control of transcripts", *SOLVED, *AUDIO, "task.format.transcript=text"),
    ("text and audio", "task.format.audio=file"),
    ("transcript without audio", "task.format.transcript=text"),
    ("audio without labels", *AUDIO),
    ("audio with both labels", *AUDIO, "task.format.answer=kind", "task.format.transcript=text"),
    ("choices of transcripts", *AUDIO, "task.format.transcript=text", "task.format.choices=[a, b]"),
    ("control without examples", *SOLVED, "federation.participants=[]", "task.public_size=0"),
    ("control outside of the fixed point", *SOLVED, SECURE, "task.clients=3",
     "federation.secure_aggregation.value_range=0.5"),
    ("control with features that are none", "control.features=words"),
    ("control of a share of the clients", *SOLVED, "federation.fraction=0.5"),
    ("control with too small a ridge", *SOLVED, "control.ridge=1e-300"),
    ("control with too many columns", *SOLVED, "control.columns=1000000"),
    ("rounds without a public example", "task.public_size=0", UNLABELLED, "server.unlabelled_per_round=0"),
    ("partition with public examples", "task.partition={kind: iid, with_public: true}"),
    ("pseudo-labels for no examples", LABELS),
    ("pseudo-labels that no round uses", LABELS, UNLABELLED, "server.unlabelled_per_round=0"),
    ("pseudo-labels from all clients with a threshold for some", LABELS, UNLABELLED, SECURE, "task.clients=5",
     "task.private_size=8", "federation.fraction=0.6", "federation.secure_aggregation.threshold=3"),
    ("pseudo-labels of what adapters have", LABELS, UNLABELLED, "client.ranks=[2]", "federation.upload=float16"),
    ("pseudo-labels of medians", LABELS, UNLABELLED, "federation.aggregation=median", "federation.faulty=0"),
    ("pseudo-labels under privacy", LABELS, UNLABELLED, LEVEL_EXAMPLE, UNIFORM),
    ("a profile without clients", PROFILE, "federation.participants=[]"),
    ("a profile of clients that weigh alike", PROFILE, UNIFORM),
    ("a profile under privacy", PROFILE, LEVEL_EXAMPLE, UNIFORM),
    ("pseudo-labels for free answers", LABELS, UNLABELLED, "task.format.choices=null"),
    ("cleaning under privacy of examples", "task.cleaning={}", LEVEL_EXAMPLE, UNIFORM),
    ("cleaning of labels that are free answers", "task.cleaning={}", "task.format.choices=null"),
    ("cleaning of images from personal data", "task.name=digits", "task.format=null",
     "task.cleaning={personal: mask}"),
    ("misspelt key of a section that is null", "llm.heal.siz=10"),
    ("layers that are neither a number nor indices", "slm.layers=some"),
    ("layers that are measured without a text", "slm.layers=1", "slm.layer_choice=block"),
    ("indices of layers that are measured", "slm.layers=[0]", "slm.layer_choice=block", "slm.heal={}"),
]  # fmt: skip

MODELS = [
    ("directory that is none", "slm.source=/no/such/model"),
    ("GGUF file that is none", "slm.source=/no/such/model.gguf"),
    ("model of the hub, which is out of reach", "slm.source=someone/some-model"),
    ("more layers than there are", "slm.layers=99"),
    ("adapter's targets that the model lacks", "slm.adapter.targets=[query]"),
    ("device that is none", "device=gpu7"),
]

DATA = [
    ("task that is none", "task.name=icd9", "task.format=null"),
    ("no file", "task.path=/no/such/place"),
    ("more examples than there are", "task.private_size=100000"),
    ("column that is none", "task.format.answer=class"),
    ("choice that is named twice", "task.format.choices=[colour, colour]"),
    ("answer that is no choice", "task.format.choices=[colour, plant]"),
    ("fewer groups than clients", "task.partition.kind=natural", *FOUR),
    ("examples without groups", "task.partition.kind=natural", "task.format.group=null"),
    ("fewer examples than clients", "task.clients=50", "task.private_size=1", "task.partition.kind=shards"),
]

OWN_DATA = [
    ("no rows", "a.jsonl", lines("a.jsonl")),
    ("line that is not JSON", "a.jsonl", lines("a.jsonl", good_row(1), '{"text": ')),
    ("line that is no object", "a.jsonl", lines("a.jsonl", good_row(1), "[1]")),
    ("row without a column", "a.jsonl", lines("a.jsonl", good_row(1), {"text": "dog"})),
    ("one answer only", "a.jsonl", lines("a.jsonl", *(good_row(2 * i) for i in range(9)))),
    ("unknown ending", "a.docx", lines("a.docx", good_row(1))),
    ("no training file", "", lines("other.jsonl", good_row(1))),
    ("two training files", "", both(lines("train.jsonl", good_row(1)), lines("train.csv", "text,kind", "cat,animal"))),
]

DIRECTORIES = [
    Case("directory of another run", "run CONFIG --out ROOT/run", with_run),
    Case("memory limit that is no size", "run CONFIG --out ROOT/run --memory-limit lots"),
    Case("resumed with another configuration", "run CONFIG --set seed=7 --out ROOT/run --resume",
         with_run),
    Case("resumed where nothing is", "run --out ROOT/run --resume"),
    Case("output that can't be written", "run CONFIG --out ROOT/file/run", lines("file", "")),
    Case("checkpoint that is broken", "run CONFIG --out ROOT/run --resume",
         both(with_run, lines("run/checkpoint.safetensors", "nothing"))),
    Case("evaluation of no run", "evaluate ROOT"),
    Case("evaluation of an unknown role", "evaluate ROOT/run --role server", with_run),
    Case("evaluation of a control", "evaluate ROOT/run", with_control),
    Case("harness of another task", "evaluate ROOT/run --harness", with_run),
    Case("harness with examples to write", "evaluate ROOT/run --harness --write-examples ROOT/x.jsonl",
         with_run),
    Case("report of no directory", "report ROOT/nothing"),
    Case("report of no run", "report ROOT"),
    Case("report of records that are broken", "report ROOT/run",
         both(with_run, lines("run/rounds.jsonl", '{"round": 0, "scores": 1}'))),
    Case("preset that is none", "check icd11"),
    Case("configuration that is no YAML", "check ROOT/a.yaml", lines("a.yaml", "task: [")),
    Case("configuration that is a list", "check ROOT/a.yaml", lines("a.yaml", "- task")),
    Case("comparison by an unknown method", "compare CONFIG --out ROOT/all --methods fedpox"),
    Case("comparison by a method that does not fit", "compare CONFIG --out ROOT/all --methods layer_transfer"),
    Case("comparison of two tasks with one name", "compare CONFIG CONFIG --out ROOT/all --methods fedavg"),
    Case("comparison with a seed that is no number", "compare CONFIG --out ROOT/all --seeds one"),
    Case("comparison with no number of jobs", "compare CONFIG --out ROOT/all --jobs many"),
]  # fmt: skip

INIT, FIRST = "deploy init CONFIG --host localhost --out ROOT/out", "out/invitations/a.json"

DEPLOYMENT = [
    Case("plain updates", INIT),
    Case("directory that exists", f"{INIT} --clients a,b,c --set {SECURE}", with_deployment),
    Case("name with a slash", f"{INIT} --clients a,b,c/d --set {SECURE}"),
    Case("name twice", f"{INIT} --clients a,b,b --set {SECURE}"),
    Case("demo data of one's own task", f"{INIT} --demo-data --set task.clients=3 --set {SECURE}"),
    Case("demo data of named clients", f"{INIT} --demo-data --clients a,b,c --set {SECURE}"),
    Case("task of images", f"deploy init digits --host localhost --out ROOT/out --set {SECURE}"),
    Case("server's directory that is a client's", "deploy server ROOT/out/clients/a", with_deployment),
    Case("server's directory that is none", "deploy server ROOT/none"),
    Case("client's directory that is the server's", "deploy client ROOT/out/server --data ROOT", with_deployment),
    Case("deployment that is malformed", "deploy status ROOT/out/server",
         both(with_deployment, edit("out/server/deployment.json", lambda text: text.replace('"port":', '"ports":')))),
    Case("client's data that is none", "deploy client ROOT/out/clients/a --data ROOT/none", with_deployment),
    Case("client's data without a training file", "deploy client ROOT/out/clients/a --data ROOT",
         both(with_deployment, lines("test.jsonl", good_row(1)))),
    Case("client's key that others may read", "deploy client ROOT/out/clients/a --data ROOT",
         both(with_deployment, lambda place: (place.root / "out/clients/a/node.key").chmod(0o644))),
    Case(
        "SLM that each party would heal",
        f"{INIT} --clients a,b,c --set {SECURE} --set slm.layers=1 --set slm.heal.size=100",
    ),
    Case("SLM that is whole and healed", f"{INIT} --clients a,b,c --set {SECURE} --set slm.heal.size=100"),
    Case("invitation that is none", "deploy join ROOT/none.json --out ROOT/client --yes"),
    Case("invitation that is another file", "deploy join CONFIG --out ROOT/client --yes"),
    Case("invitation with a path for a name", f"deploy join ROOT/{FIRST} --out ROOT/client --yes",
         both(with_invitations, edit(FIRST, lambda text: text.replace('"client": "a"', '"client": "../a"')))),
    Case("request that is none", "deploy admit ROOT/out/server ROOT/none.json --ca ROOT/out/ca", with_invitations),
    Case("removal of nobody", "deploy remove ROOT/out/server a --ca ROOT/out/ca", with_invitations),
    Case("authority that is none", "deploy renew ROOT/out/server --ca ROOT/out/server", with_invitations),
    Case("server without clients", "deploy server ROOT/out/server --page none", with_invitations),
    Case("page without a port", "deploy server ROOT/out/server --page here", with_deployment),
    Case("client's key that is missing", "deploy client ROOT/out/clients/a --data ROOT",
         both(with_deployment, lambda place: (place.root / "out/clients/a/node.key").unlink())),
]  # fmt: skip

SHRINK = "shrink LLM --out ROOT/out --set heal.text=ROOT/a.txt --set heal.size=1"
TEXT = lines("a.txt", *(f'"word {i}"' for i in range(97)))

SHRINKING = [
    Case("directory that exists", f"{SHRINK} --out ROOT"),
    Case("layers that are neither a number nor indices", f"{SHRINK} --layers x"),
    Case("more layers than there are", f"{SHRINK} --layers 99", TEXT),
    Case("setting that is none", f"{SHRINK} --set adapter.rank=4"),
    Case("no healing", f"{SHRINK} --set heal=null"),
    Case("text that is too short", SHRINK, lines("a.txt", '"two words"')),
    Case("text that is none", SHRINK),
    Case("task of images", f"{SHRINK} --task digits"),
    Case("model that is none", SHRINK.replace("LLM", "ROOT/none"), TEXT),
]  # fmt: skip

EXPORT = "export ROOT/run --out ROOT/out --format"
EXPORTING = [
    Case("of no run", "export ROOT --out ROOT/out --format merged"),
    Case("in an unknown format", f"{EXPORT} safetensors", with_run),
    Case("in an unknown quantization", f"{EXPORT} gguf --quantization q4_k_m", with_run),
    Case("of a base that goes along anyway", f"{EXPORT} merged --with-base", with_run),
    Case("of a tokenizer that llama.cpp does not know", f"{EXPORT} gguf --no-check --quiet", with_run),
    Case("into a full directory", "export ROOT/run --out ROOT/run --format merged", with_run),
]  # fmt: skip

AUDITING = [
    Case("of nothing", "audit ROOT/none.csv"),
    Case("for something unknown", "audit DATA --only labels,luck"),
    Case("by an unknown rule", "audit DATA --rule luck"),
    Case("with fixes that are none", "audit DATA --apply DATA"),
    Case("by a run that is none", "audit DATA --run ROOT"),
    Case("beside a federation that has no profile", "audit DATA --federation ROOT/profile.json"),
    Case("beside a profile that is none", "audit DATA --federation DATA"),
    Case("beside a federation, with fixes", "audit DATA --federation ROOT/profile.json --apply DATA"),
]  # fmt: skip

CASES = [
    *(Case(f"configuration: {name}", settings(*(f"'{pair}'" for pair in pairs))) for name, *pairs in CONFIGURATION),
    *(Case(f"model: {name}", settings(*(f"'{pair}'" for pair in pairs))) for name, *pairs in MODELS),
    *(Case(f"data: {name}", settings(*(f"'{pair}'" for pair in pairs))) for name, *pairs in DATA),
    *(Case(f"data: {name}", settings(f"task.path=ROOT/{file}"), prepare) for name, file, prepare in OWN_DATA),
    *(Case(f"directory: {case.name}", case.command, case.prepare) for case in DIRECTORIES),
    *(Case(f"deployment: {case.name}", case.command, case.prepare) for case in DEPLOYMENT),
    *(Case(f"shrink: {case.name}", case.command, case.prepare) for case in SHRINKING),
    *(Case(f"export: {case.name}", case.command, case.prepare) for case in EXPORTING),
    *(Case(f"audit: {case.name}", case.command, case.prepare) for case in AUDITING),
]


@pytest.fixture(scope="module")
def snapshot(request: pytest.FixtureRequest) -> Iterator[Snapshot]:
    update = request.config.getoption("--update-snapshots")
    snapshot = Snapshot(FOLDER / "refusals.txt", bool(update))
    yield snapshot
    if update:
        snapshot.save(TITLE, [case.name for case in CASES])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def place(
    tmp_path: Path, tiny_config: RunConfig, word_data: Path, model_directories: dict[str, str], finished: Path
) -> Place:
    (tmp_path / "root").mkdir()
    config = tmp_path / "config.yaml"
    short = changed(tiny_config, {"federation.rounds": 1})
    config.write_text(yaml.safe_dump(short.model_dump(mode="json")), encoding="utf-8")
    if not finished.exists():
        run(short, finished)
    return Place(tmp_path / "root", config, word_data, model_directories, finished)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refusal_is_one_message_that_says_what_and_what_to_do(case: Case, place: Place, snapshot: Snapshot):
    case.prepare(place)
    code, out, err = call(place, case.command)
    assert (code, out) == (2, "")
    _, refused, message = f"\n{err}".partition("\nerror: ")  # what was done before may be said before
    assert refused
    snapshot.check(case.name, message)


def test_snapshot_holds_nothing_else(snapshot: Snapshot):
    assert snapshot.update or list(snapshot.texts) == [case.name for case in CASES]
