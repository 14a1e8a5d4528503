import math

import pytest
import torch
from safetensors.torch import load_file

import fedcollm
from fedcollm.config import RunConfig
from fedcollm.config.baselines import changed
from fedcollm.config.methods import CONTROLS, PAPER
from fedcollm.errors import UserError
from fedcollm.experiments import comparison
from fedcollm.experiments.comparison import Plan, default_methods, plan
from fedcollm.federation.client import Client
from fedcollm.federation.server import Server
from fedcollm.report.budgets import Steps
from fedcollm.report.compared import Row
from fedcollm.report.scores import interval
from fedcollm.runs.build import Inputs
from fedcollm.runs.directory import read_config, read_records
from fedcollm.runs.runner import rounds


def test_confidence_interval_by_hand():
    # mean 2, variance ((1)^2 + 0 + (1)^2) / 2 = 1, half width = 4.3027 * sqrt(1 / 3)
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302653 * math.sqrt(1 / 3), abs=1e-5)


def test_row_text():
    row = Row("x", {"slm": [0.5, 0.7], "llm": [0.5, 0.6, 0.7]})
    assert row.text("slm") == "0.600"  # two seeds are too few for an interval
    assert row.text("llm") == "0.600 ± 0.248"  # 4.3027 * 0.1 / sqrt(3)
    assert row.text("clients") == "–"


def test_every_method_is_a_configuration_of_the_same_loop(tiny_config):
    configs = dict(plan(tiny_config, list(PAPER), [3]))
    assert configs.keys() == {
        "majority/seed-3",
        "closed_form/seed-3",
        "fedcollm/seed-3",
        "fedavg/seed-3",
        "fedavg_ce/seed-3",
        "standalone/seed-3/client-0",
        "standalone/seed-3/client-1",
        "llm2slm/seed-3",
        "centralized/seed-3",
        "centralized_llm/seed-3",
    }
    assert configs["fedavg/seed-3"].server.epochs == 0
    assert configs["fedavg_ce/seed-3"].server.distillation.weight == 0
    assert configs["standalone/seed-3/client-1"].federation.participants == ["1"]
    assert configs["llm2slm/seed-3"].federation.participants == []
    assert configs["llm2slm/seed-3"].server.distillation.llm_weight == 0
    assert configs["centralized_llm/seed-3"].slm == tiny_config.llm
    assert all(config.seed == 3 for config in configs.values())


def test_llm_on_all_data_is_tuned_as_the_server_tunes_it(tiny_config):
    server = tiny_config.server.model_copy(update={"learning_rate": 7e-4, "batch_size": 3})
    config = dict(plan(tiny_config.model_copy(update={"server": server}), ["centralized_llm"], [0]))
    client = config["centralized_llm/seed-0"].client
    assert (client.learning_rate, client.batch_size) == (7e-4, 3)


@pytest.mark.parametrize("method", ["standalone", "centralized", "centralized_llm"])
def test_method_of_a_single_party_has_no_secure_aggregation(tiny_config, method):
    secure = changed(tiny_config, {"federation.secure_aggregation.enabled": True, "task.clients": 3})
    assert not any(config.federation.secure_aggregation.enabled for _, config in plan(secure, [method], [0]))
    assert all(config.federation.secure_aggregation.enabled for _, config in plan(secure, ["fedcollm", "fedavg"], [0]))


def test_privacy_is_kept_where_something_leaves_a_client_and_nowhere_else(tiny_config):
    privacy = {"level": "example", "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5, "sampling_rate": 0.1}
    values = tiny_config.model_dump()
    values["federation"] |= {"privacy": privacy, "aggregation": "uniform"}
    base = RunConfig.model_validate(values)
    configs = plan(base, default_methods([base]), [0])
    private = {place.split("/")[0] for place, config in configs if config.federation.privacy}
    assert private == {"fedcollm", "fedavg", "fedavg_ce"}
    for _, config in configs:
        assert RunConfig.model_validate(config.model_dump()) == config


def test_controls_are_left_out_by_default_where_they_do_not_suit_every_task(tiny_config):
    free = changed(tiny_config, {"task.format.choices": None})
    trained = [name for name in PAPER if name not in CONTROLS]
    assert default_methods([tiny_config]) == list(PAPER)
    assert {"majority", "closed_form"} <= PAPER.keys() & CONTROLS.keys()
    assert default_methods([tiny_config, free]) == trained
    with pytest.raises(UserError, match=r"--methods: closed_form (?s:.*)free answers"):
        plan(free, ["closed_form"], [0])


def test_control_is_compared_on_the_same_test_examples(tiny_config, tmp_path):
    one = changed(tiny_config, {"federation.rounds": 1})
    (control, method) = fedcollm.compare(one, tmp_path, methods=["closed_form", "fedcollm"]).rows[1:]
    assert control.values["slm"] == control.values["llm"]
    assert {role: set(known) for role, known in control.differences.items()} == {
        "slm": {"fedcollm"},
        "llm": {"fedcollm"},
    }
    for role in ("slm", "llm"):
        difference = control.differences[role]["fedcollm"]
        assert difference.examples == 48
        assert difference.mean == pytest.approx(control.values[role][0] - method.values[role][0])
    assert (control.steps, method.steps) == (Steps(0, 0), Steps(6, 6))


def test_unknown_method_is_refused(tiny_config, tmp_path):
    with pytest.raises(UserError, match="unknown method 'fedpox'"):
        Plan(tmp_path, [tiny_config], ["fedpox"], [0])


def test_two_tasks_of_one_name_are_refused(tiny_config, tmp_path):
    with pytest.raises(UserError, match="name 'tiny'"):
        Plan(tmp_path, [tiny_config, tiny_config], ["fedavg"], [0])


def test_several_tasks_have_a_folder_each(tiny_config, tmp_path):
    other = tiny_config.model_copy(update={"name": "other"})
    jobs = Plan(tmp_path, [tiny_config, other], ["fedavg"], [0, 1]).jobs()
    assert [job.place for job in jobs] == [f"{task}/fedavg/seed-{s}" for task in ("tiny", "other") for s in (0, 1)]
    assert [job.place for job in Plan(tmp_path, [other], ["fedavg"], [0]).jobs()] == ["fedavg/seed-0"]


def test_method_that_does_not_fit_the_configuration_is_the_users_error(tiny_config):
    # the SLM of tiny_config is a model of its own
    with pytest.raises(UserError, match=r"--methods: layer_transfer (?s:.*)server\.layer_transfer 1"):
        plan(tiny_config, ["fedcollm", "layer_transfer"], [0])


def test_ablations_are_planned_and_named_in_the_table(tiny_config, tmp_path):
    methods = ["fedcollm", "ffa_lora", "fedadam"]
    comparison = fedcollm.compare(tiny_config, tmp_path, methods=methods)
    assert [row.name for row in comparison.rows] == [
        "zero-shot",
        "FedCoLLM",
        "FedCoLLM, FFA-LoRA",
        "FedCoLLM, FedAdam server",
    ]
    assert all(len(row.values["slm"]) == len(row.values["llm"]) == 1 for row in comparison.rows)
    assert read_config(tmp_path / "fedadam" / "seed-0").federation.server_optimizer.kind == "fedadam"


def test_compare_tabulates_all_methods_and_repeats_nothing(tiny_config, tmp_path, monkeypatch):
    comparison = fedcollm.compare(tiny_config, tmp_path, seeds=[0, 1])
    rows = {row.name.split()[0]: row for row in comparison.rows}
    assert set(rows) == {
        "zero-shot", "majority", "closed", "standalone", "FedAvg", "LLM2SLM", "FedCoLLM", "centralized"
    }  # fmt: skip
    assert len(comparison.rows) == 10
    assert all(len(row.values["slm"]) == 2 for row in comparison.rows if "LLM (" not in row.name)
    finished = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("rounds.jsonl")}
    assert fedcollm.compare(tiny_config, tmp_path, seeds=[0, 1]).rows == comparison.rows
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("rounds.jsonl")} == finished
    row = rows["FedCoLLM"]
    line = f"| FedCoLLM | {row.text('slm')} | {row.text('clients')} | {row.text('llm')} | 12 | 12 |"
    assert line in comparison.to_markdown().splitlines()
    beside = {"closed_form", "fedavg_ce"}
    assert {role: set(known) for role, known in row.differences.items()} == {"slm": beside, "llm": beside}
    assert row.differences["slm"]["fedavg_ce"].examples == 2 * 48


def test_pooled_client_holds_exactly_the_clients_examples(tiny_config):
    from fedcollm.data.catalogue import load_pool
    from fedcollm.data.partition import split

    configs = dict(plan(tiny_config, ["fedavg", "centralized", "centralized_llm"], [0]))
    splits = {name: split(load_pool(c.task, c.seed), c.task, c.seed) for name, c in configs.items()}
    parts = splits["fedavg/seed-0"].private
    union = {example.id for part in parts.values() for example in part}
    assert {e.id for e in splits["centralized/seed-0"].private["0"]} == union
    public = {e.id for e in splits["fedavg/seed-0"].public}
    assert {e.id for e in splits["centralized_llm/seed-0"].private["0"]} == union | public
    assert [e.id for e in splits["centralized/seed-0"].test] == [e.id for e in splits["fedavg/seed-0"].test]


def test_processes_give_the_same_bits_and_failures_stop_nothing_else(tiny_config, tmp_path):
    broken = changed(tiny_config, {"name": "broken", "slm.source": str(tmp_path / "nowhere")})
    good = changed(tiny_config, {"federation.rounds": 1})
    alone = fedcollm.compare(good, tmp_path / "one", methods=["fedavg"], seeds=[0])
    with pytest.raises(UserError, match=r"broken/fedavg/seed-0: .*nowhere"):
        fedcollm.compare([broken, good], tmp_path / "two", methods=["fedavg"], seeds=[0], jobs=2)
    one, two = (load_file(tmp_path / at / "fedavg/seed-0/checkpoint.safetensors") for at in ("one", "two/tiny"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert Plan(tmp_path / "two", [broken, good], ["fedavg"], [0]).tabulate().tasks[1].rows == alone.rows


def test_client_alone_keeps_its_rank_and_one_with_all_data_has_them_all(tiny_config):
    config = changed(
        tiny_config,
        {
            "federation.aggregation": "product",
            "client.ranks": [2, 4],
            "federation.upload": "float16",
            "llm.adapter.kind": "ia3",
        },
    )
    configs = dict(plan(config, list(PAPER), [0]))
    ranks = {place.removesuffix("/seed-0"): one.client.ranks for place, one in configs.items()}
    assert ranks["standalone/seed-0/client-0"] == [2]
    assert ranks["standalone/seed-0/client-1"] == [4]
    assert ranks["fedavg"] == ranks["fedcollm"] == [2, 4]
    assert ranks["centralized"] is ranks["centralized_llm"] is None
    assert configs["standalone/seed-0/client-1"].federation.upload == "float32"
    assert configs["fedavg/seed-0"].federation.upload == "float16"


def test_what_methods_share_is_done_once_and_changes_no_bit(tiny_config, tmp_path, monkeypatch):
    trained, scored = [], []
    train, score = Client.train, Server.score
    monkeypatch.setattr(Client, "train", lambda self, asked: trained.append(asked.round_index) or train(self, asked))
    monkeypatch.setattr(Server, "score", lambda self, role: scored.append(role) or score(self, role))
    fedcollm.compare(tiny_config, tmp_path / "shared", methods=["fedavg", "fedcollm"])
    assert trained == [1, 1, 2, 2, 2, 2]  # two clients: round 1 for both methods at once, round 2 for each
    assert scored == ["slm"] * 3 + ["llm", *("slm", "llm") * 2]  # round 0 of the SLM for both at once
    for method, config in plan(tiny_config, ["fedavg", "fedcollm"], [0]):
        fedcollm.run(config, tmp_path / "alone" / method)
        one, two = (load_file(tmp_path / at / method / "checkpoint.safetensors") for at in ("shared", "alone"))
        assert all(torch.equal(one[name], two[name]) for name in two)
        for name in ("outcomes.json", "confusion.json", "data.json"):
            assert (tmp_path / "shared" / method / name).read_text() == (tmp_path / "alone" / method / name).read_text()
        records = [read_records(tmp_path / at / method) for at in ("shared", "alone")]
        assert [(r.scores, r.losses, r.bytes_up) for r in records[0]] == [
            (r.scores, r.losses, r.bytes_up) for r in records[1]
        ]


def test_uploads_of_another_form_are_not_shared(tiny_config, tmp_path):
    config = changed(tiny_config, {"client.ranks": [8, 2], "federation.rounds": 1})
    fedcollm.compare(config, tmp_path, methods=["fedavg", "standalone", "half_upload"])
    lost = [record.lost for place, _ in plan(config, ["fedavg", "standalone", "half_upload"], [0])
            for record in read_records(tmp_path / place)]  # fmt: skip
    assert lost == [{}] * 8  # four runs of a round, and round 0 of each
    # two clients in 32 bits, which those alone share with FedAvg's, and two in 16
    assert len(list((tmp_path / ".shared" / "round-1").glob("*.safetensors"))) == 4


def test_nothing_is_shared_under_secure_aggregation(tiny_config, tmp_path):
    values = {"federation.secure_aggregation.enabled": True, "task.clients": 3, "federation.rounds": 1}
    fedcollm.compare(changed(tiny_config, values), tmp_path, methods=["fedavg"])
    assert [folder.name for folder in (tmp_path / ".shared").iterdir()] == ["round-0"]


def test_what_a_client_does_otherwise_is_not_shared(tiny_config, tmp_path, monkeypatch):
    trained, train = [], Client.train
    monkeypatch.setattr(Client, "train", lambda self, asked: trained.append(asked.round_index) or train(self, asked))
    base = changed(tiny_config, {"federation.rounds": 1, "server.epochs": 0})
    for name, values in (
        ("whole", {}),
        ("again", {"federation.server_optimizer.kind": "fedavgm"}),
        ("half", {"federation.upload": "bfloat16"}),
        ("pulled", {"client.proximal": 0.1}),
        ("narrow", {"client.ranks": [2, 4]}),
        ("other", {"task.partition.kind": "quantity"}),
    ):
        before = len(trained)
        list(rounds(changed(base, values | {"name": name}), tmp_path / name, Inputs(shared=tmp_path / "shared")))
        assert len(trained) - before == (0 if name == "again" else 2), name


def test_runs_at_the_same_time_are_sized_by_the_statistics_of_the_methods_too(tiny_config, tmp_path, monkeypatch):
    sizes: list[int] = []
    monkeypatch.setattr(comparison, "fitting_jobs", lambda needs, cuda: sizes.extend(needs) or 1)
    monkeypatch.setattr(comparison, "in_this_process", lambda jobs, failed: iter(()))
    wanted = Plan(tmp_path, [tiny_config], ["majority", "closed_form"], [0, 1])
    assert list(comparison.comparing(wanted, [], "auto")) == []
    assert len(sizes) == 3  # of the base configuration and of either method, once for both seeds
    assert max(sizes) > 40 * 2048**2 > min(sizes)


def test_what_a_method_is_known_for_and_runs_without_is_said_with_the_reason(tiny_config):
    cut = {"slm.source": tiny_config.llm.source, "slm.layers": 1, "slm.adapter": tiny_config.llm.adapter.model_dump()}
    with_all = changed(tiny_config, cut | {"task.unlabelled_size": 8})
    assert comparison.unused("fedcollm_plus", with_all) == []
    assert comparison.unused("fedprox", with_all) == comparison.unused("closed_form", with_all) == []
    (labels,) = comparison.unused("fedcollm_plus", changed(with_all, {"task.unlabelled_size": 0}))
    assert labels.startswith("fedcollm_plus runs without server.pseudo_labels, because ")
    assert "task.unlabelled_size is 0" in labels
    (transfer,) = comparison.unused("plus_without_labels", tiny_config)
    assert transfer.startswith("plus_without_labels runs without server.layer_transfer, because ")
