import importlib.metadata
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fedcollm.cli import app as cli
from fedcollm.messages import Score
from fedcollm.runs import runner


@pytest.fixture
def config_file(tiny_config, tmp_path) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(tiny_config.model_dump(mode="json")))
    return file


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command line in this process: (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedcollm", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


def test_run_prints_a_table_and_writes_a_report(command, config_file, tmp_path):
    code, out, _ = command("run", config_file, "--out", tmp_path / "run")
    assert code == 0
    for text in ("zero-shot", "final", "SLM (global)", "LLM", "up / down, per client and round", "peak memory"):
        assert text in out
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_json_prints_the_last_record_and_nothing_else(command, config_file, tmp_path):
    code, out, err = command("run", config_file, "--out", tmp_path / "run", "--json")
    assert code == 0
    assert err == ""
    assert json.loads(out)["round"] == 2
    assert out.count("\n") == 1


def test_quiet_prints_nothing(command, config_file, tmp_path):
    assert command("run", config_file, "--out", tmp_path / "run", "--quiet") == (0, "", "")


def test_progress_is_plain_lines_when_not_a_terminal(command, config_file, tmp_path):
    _, _, err = command("run", config_file, "--out", tmp_path / "run")
    lines = [line for line in err.splitlines() if line.startswith("round")]
    assert [line.split()[1] for line in lines] == ["0", "1", "2"]
    assert "\x1b" not in err


def test_evaluate_reproduces_the_records(command, config_file, tmp_path):
    _, out, _ = command("run", config_file, "--out", tmp_path / "run", "--json")
    scores = json.loads(out)["scores"]
    for role in ("slm", "llm"):
        code, out, _ = command("evaluate", tmp_path / "run", "--role", role, "--json")
        assert code == 0
        assert json.loads(out)["acc"] == scores[role]


def test_report_of_several_runs(command, config_file, tmp_path):
    for seed in (0, 1):
        command("run", config_file, "--set", f"seed={seed}", "--out", tmp_path / f"run-{seed}", "--quiet")
    code, out, _ = command("report", tmp_path / "run-0", tmp_path / "run-1", "--out", tmp_path / "both.html")
    assert code == 0
    assert Path(out.strip()).exists()


def test_compare_shows_what_is_finished_and_then_what_failed(command, config_file, tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text(
        config_file.read_text().replace("name: tiny", "name: broken", 1).replace("words.jsonl", "no.jsonl")
    )
    arguments = ("compare", config_file, broken, "--methods", "fedavg_ce,fedcollm", "--set", "federation.rounds=1")
    code, out, err = command(*arguments, "--out", tmp_path / "all", "--json")
    assert code == 2
    assert err.startswith("error: broken/fedavg_ce/seed-0: ")
    assert err.endswith("Also failed: broken/fedcollm/seed-0.\n")
    tables = json.loads(out)
    assert [row["method"] for row in tables["tiny"]["rows"]] == [None, "fedavg_ce", "fedcollm"]
    assert tables["tiny"]["rows"][2]["differences"]["slm"]["fedavg_ce"]["examples"] == 48
    assert tables["tiny"]["sizes"]["test"] == 48
    assert tables["broken"]["rows"] == []
    for name in ("table.md", "table.tex", "comparison.json", "tiny/report.html"):
        assert (tmp_path / "all" / name).stat().st_size > 100


@pytest.mark.parametrize("jobs", ["0", "all", "-1"])
def test_compare_refuses_a_number_of_jobs_that_is_none(command, config_file, tmp_path, jobs):
    code, _, err = command("compare", config_file, "--jobs", jobs, "--out", tmp_path / "all")
    assert (code, "--jobs" in err) == (2, True)
    assert not (tmp_path / "all").exists()


def test_init_prints_a_configuration_that_runs(command, tmp_path):
    code, out, _ = command("init", "icd10")
    assert code == 0
    (tmp_path / "my.yaml").write_text(out)
    code, _, err = command("check", tmp_path / "my.yaml", "--set", "client.epochs=0")
    assert code == 2
    assert "client.epochs: 0 is not allowed" in err


def test_version_is_that_of_the_installed_package(command):
    assert command("--version") == (0, importlib.metadata.version("fedcollm") + "\n", "")


def test_presets_lists_all(command):
    code, out, _ = command("presets")
    assert code == 0
    names = {line.split()[0] for line in out.splitlines()}
    expected = "icd10 arc_easy arc_challenge openbookqa commonsense_qa professions digits shapes spoken_words "
    expected += "gemma_shrunk llama_shrunk qwen_shrunk smollm2_shrunk "
    expected += "gpt2 opt llama2 smollm2 qwen fedcollm_plus photos coco whisper wav2vec2 speech_commands"
    assert names == set(expected.split())


BAD_SETTINGS = [
    ("federation.round=3", "federation.round: unknown key; did you mean 'rounds'?"),
    ("federation.rounds=0", "federation.rounds: 0 is not allowed"),
    ("task.clients=-1", "task.clients: -1 is not allowed"),
    ("slm.adapter.rank=0", "slm.adapter.rank: 0 is not allowed"),
    ("client.learning_rate=-1", "client.learning_rate: -1 is not allowed"),
    ("client.batch_size=many", "client.batch_size: 'many' is not allowed"),
    ("task.path=/no/such/place", "/no/such/place"),
    ("task.private_size=100000", "100000"),
    ("task={name: icd9, format: null}", "unknown task 'icd9'"),
    ("slm.source=/no/such/model", "no such directory: /no/such/model"),
    ("slm.source=/no/such/model.gguf", "no such file: /no/such/model.gguf"),
    ("slm.source=someone/some-model", "Download the model elsewhere"),
    ("slm.adapter.targets=[query]", "q_proj"),
    ("slm.adapter.kind=lorra", "unknown method 'lorra'"),
    ("slm.adapter.kind=prompt_tuning", "adapter.kind: prompt_tuning puts learned tokens before every prompt"),
    ("slm.adapter.kind=P_TUNING", "adapter.kind: P_TUNING puts learned tokens before every prompt"),
    ("slm.layers=99", "layers: 99"),
    ("device=gpu7", "device: 'gpu7'"),
    ("federation.participants=['9']", "no client '9'"),
    ("federation.secure_aggregation.threshold=0", "federation.secure_aggregation.threshold: 0 is not allowed"),
]


@pytest.mark.parametrize(("setting", "message"), BAD_SETTINGS, ids=[setting for setting, _ in BAD_SETTINGS])
def test_bad_setting_gives_one_message_and_leaves_nothing(command, config_file, tmp_path, setting, message):
    code, out, err = command("run", config_file, "--set", setting, "--out", tmp_path / "run")
    assert code == 2
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert err.count("error: ") == 1
    assert not (tmp_path / "run").exists()


def test_all_errors_of_a_configuration_are_reported_at_once(command, config_file, tmp_path):
    settings = ["--set", "client.epoch=1", "--set", "federation.rounds=-2", "--set", "slm.adapter.dropout=2"]
    code, _, err = command("run", config_file, *settings, "--out", tmp_path / "run")
    assert code == 2
    assert "3 errors" in err
    for key in ("client.epoch", "federation.rounds", "slm.adapter.dropout"):
        assert key in err


def test_unwritable_output_directory(command, config_file, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    code, _, err = command("run", config_file, "--out", blocked / "run")
    assert code == 2
    assert "can't be made, because" in err
    assert "Traceback" not in err


def test_second_run_into_a_directory_is_refused(command, config_file, tmp_path):
    command("run", config_file, "--out", tmp_path / "run", "--quiet")
    code, _, err = command("run", config_file, "--out", tmp_path / "run")
    assert code == 2
    assert "--resume" in err


OLD_CONFIG = """
name: old
slm: {layers: 10, warm_up: 0}
federation:
  rounds: 3
  secure_aggregation: true
  masking: {threshold: null, rehearse: false}
  step: {kind: none, rate: 1.0}
"""


@pytest.mark.parametrize("version", ["", "schema_version: 1\n"])
@pytest.mark.parametrize("arguments", [("report",), ("evaluate",), ("run", "--resume", "--out")], ids=lambda a: a[0])
def test_run_directory_of_an_older_version_is_refused(command, tmp_path, arguments, version):
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.yaml").write_text(version + OLD_CONFIG)
    code, out, err = command(*arguments, old)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {old / 'config.yaml'} was written by another version of fedcollm")
    assert "schema_version is 1" in err
    assert "Traceback" not in err
    assert [file.name for file in old.iterdir()] == ["config.yaml"]


def test_models_that_share_no_tokenizer_are_refused(command, config_file, tmp_path, model_directories):
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    other = tmp_path / "other"
    AutoModelForCausalLM.from_pretrained(model_directories["llm"]).save_pretrained(other)
    inner = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "rouge": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>").save_pretrained(other)
    code, _, err = command("run", config_file, "--set", f"llm.source={other}", "--out", tmp_path / "run")
    assert code == 2
    assert "have different tokenizers" in err
    assert "server.distillation.across_tokenizers: true" in err


def test_broken_line_of_the_data_is_named(command, config_file, tmp_path, word_data):
    lines = word_data.read_text().splitlines()
    lines[4] = lines[4][:-5]
    broken = tmp_path / "broken.jsonl"
    broken.write_text("\n".join(lines))
    code, _, err = command("run", config_file, "--set", f"task.path={broken}", "--out", tmp_path / "run")
    assert code == 2
    assert "line 5" in err


def test_metric_that_is_not_defined_is_null_in_json(command, monkeypatch, tmp_path):
    score = Score({"ap50": 1.0, "map": 0.0}, 4, counts={"map": 0})
    monkeypatch.setattr(runner, "evaluate_run", lambda *values, **options: score)
    _, out, _ = command("evaluate", tmp_path, "--json")
    assert json.loads(out, parse_constant=pytest.fail) == {"role": "slm", "examples": 4, "ap50": 0.25, "map": None}


def test_a_fault_of_ours_is_exit_1(command, monkeypatch):
    from fedcollm.config import loading

    monkeypatch.setattr(loading, "preset_names", lambda: 1 / 0)
    code, _, err = command("presets")
    assert code == 1
    assert "fault of fedcollm" in err


@pytest.mark.parametrize(("rank", "words"), [("0", "torchrun started 2"), ("1", "")])
def test_a_command_for_one_process_is_refused_once_if_torchrun_starts_several(command, monkeypatch, rank, words):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    code, out, said = command("check", "icd10")
    assert (code, out) == (2, "")
    assert words in said
    assert bool(said) == bool(words)


def test_help_does_not_wait_for_torch():
    script = """
import sys
from fedcollm.cli import app as cli
sys.argv = ["fedcollm", "presets"]
try:
    cli.main()
except SystemExit:
    assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL, env=os.environ)


@pytest.mark.parametrize(("preset", "millions"), [("gpt2", "0.29 M"), ("opt", "3.15 M"), ("llama2", "3.15 M")])
def test_check_counts_the_papers_table_2_from_configurations_alone(command, preset, millions):
    code, out, _ = command("check", preset)
    assert code == 0
    assert millions in out


def test_check_counts_what_a_client_sends(command):
    code, out, _ = command("check", "opt", "--set", "slm.adapter.freeze_a=true", "--set", "federation.upload=float16",
                           "--set", "slm.dtype=float32")  # fmt: skip
    rows = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in out.splitlines() if line.count("│") > 2}
    assert code == 0
    assert rows["adapter parameters"] == "1.57 M"
    assert rows["bytes down, per client and round"] == "6.29 MB"
    assert rows["bytes up, per client and round"] == "3.15 MB"
    assert rows["share of the base's parameters"] == "0.12%"
    assert "share of the base's" not in out.replace("share of the base's parameters", "")  # one meaning of a share


def test_trained_models_predict_a_table_and_answer_lines(command, config_file, tmp_path, monkeypatch):
    command("run", config_file, "--out", tmp_path / "run", "--quiet")
    (tmp_path / "in.csv").write_text("text\nthe cat\nthe red\n")
    code, out, err = command("predict", tmp_path / "run", tmp_path / "in.csv", "--out", tmp_path / "out.csv", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"out": str(tmp_path / "out.csv"), "rows": 2, "roles": ["slm"]}
    answers = [line.split(",")[1] for line in (tmp_path / "out.csv").read_text().splitlines()[1:]]
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat\n\nthe red\n"))
    code, out, err = command("chat", tmp_path / "run", "--role", "slm")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == answers
    code, out, err = command("chat", tmp_path / "run", "--role", "both")
    assert (code, out) == (2, "")
    assert "no trained model of role both" in err


def test_predict_refuses_a_role_beside_an_ensemble(command, tmp_path):
    code, out, err = command("predict", str(tmp_path), "in.csv", "--out", "out.csv", "--ensemble", "--role", "llm")
    assert (code, out) == (2, "")
    assert "--role llm has no effect" in err
