"""Labels for unlabelled public examples, from sums over the clients."""

import math
import re

import pytest
import torch
from torch import nn

import fedcollm
from fedcollm.config import PseudoLabelConfig
from fedcollm.config.baselines import changed
from fedcollm.config.methods import METHODS
from fedcollm.errors import UserError
from fedcollm.federation import server
from fedcollm.federation.pseudo_labels import ACCURACY, SCALE, WEIGHTS, build_teacher, teach, verdict
from fedcollm.federation.pseudo_labels import with_pseudo_labels as label
from fedcollm.federation.statistics import GRAM, TARGETS
from fedcollm.modalities.evidence import Evidence, with_labels
from fedcollm.modalities.text.examples import TextExample
from fedcollm.modalities.text.task import TextTask
from fedcollm.report.runs import read_run
from fedcollm.runs import directory as directories
from fedcollm.runs.runner import Inputs, rounds
from fedcollm.training.fine_tuning import predict

SETTINGS = PseudoLabelConfig(ridge=1.0)
DRAWN = PseudoLabelConfig(ridge=1.0, labels="drawn")
LABELS = ("a", "b")
NONE = nn.Identity()

#: Clients with two examples: (1, 0) is a, (0, 1) is b. XᵀX / 2 = I / 2, XᵀY / 2 = [[1, -1], [-1, 1]] / 2.
CLIENTS = {GRAM: torch.tensor([0.5, 0.0, 0.5]), TARGETS: torch.tensor([[0.5, -0.5], [-0.5, 0.5]])}


class Words(TextTask):
    """The features of an example: whether its prompt is x, and whether it is y."""

    def __init__(self):
        pass

    def evidence(self, examples, features, model=None) -> Evidence:
        rows = torch.tensor([[float(e.prompt == "x"), float(e.prompt == "y")] for e in examples])
        return with_labels(rows, LABELS, [e.answer for e in examples])


def example(prompt: str, answer: int | None, name: str = "1") -> TextExample:
    return TextExample(name, prompt, LABELS, answer, LABELS)


def with_pseudo_labels(modality, slm, public, teacher, settings, seed):
    unlabelled = [e for e in public if e.label is None]
    return label(public, [teach(modality, slm, unlabelled, teacher, settings)], settings, seed)


def teacher(*labelled: TextExample):
    return build_teacher(Words(), NONE, labelled, (CLIENTS, 2), SETTINGS)


def test_without_labelled_examples_the_teacher_is_that_of_the_clients():
    found = teacher()  # (XᵀX + I)⁻¹ XᵀY = [[1, -1], [-1, 1]] / 2
    torch.testing.assert_close(found[WEIGHTS], torch.tensor([[0.5, -0.5], [-0.5, 0.5]]))
    assert (float(found[SCALE]), float(found[ACCURACY])) == (1.0, 1.0)


def test_labelled_examples_are_pooled_with_the_clients_by_hand():
    # x twice, y once: XᵀX = diag(2, 1), XᵀY = [[2, -2], [-1, 1]], so W = [[2/3, -2/3], [-1/2, 1/2]]
    found = teacher(example("x", 0))
    torch.testing.assert_close(found[WEIGHTS], torch.tensor([[2 / 3, -2 / 3], [-0.5, 0.5]]))


def test_accuracy_is_that_of_the_clients_on_examples_that_they_have_not_seen():
    found = teacher(example("x", 0), example("y", 1), example("x", 1), example("y", 0))
    assert float(found[ACCURACY]) == 0.5


@pytest.mark.parametrize(("answers", "scale"), [((0, 1), 32.0), ((1, 0), 1.0)])
def test_scale_is_the_one_with_the_lowest_loss_on_labelled_examples(answers, scale):
    assert float(teacher(example("x", answers[0]), example("y", answers[1]))[SCALE]) == scale


def test_labels_are_drawn_in_proportion_to_the_probabilities():
    # scores of x: (0.5, -0.5), scale 1, so P(a) = 1 / (1 + e⁻¹) = 0.731
    public = [example("x", None, str(i)) for i in range(4000)]
    drawn = with_pseudo_labels(Words(), NONE, public, teacher(), DRAWN, seed=1)
    share = sum(e.answer == 0 for e in drawn) / len(drawn)
    assert share == pytest.approx(1 / (1 + math.exp(-1)), abs=0.02)


def test_the_likeliest_label_does_not_depend_on_the_seed():
    public = [example(prompt, None) for prompt in "xyyx"]
    for seed in range(5):
        found = with_pseudo_labels(Words(), NONE, public, teacher(), SETTINGS, seed)
        assert [e.answer for e in found] == [0, 1, 1, 0]


def test_labelled_examples_and_the_order_stay():
    public = [example("x", 1, "1"), example("y", None, "2"), example("x", None, "3"), example("y", 0, "4")]
    found = with_pseudo_labels(Words(), NONE, public, teacher(), SETTINGS, seed=1)
    assert [e.id for e in found] == ["1", "2", "3", "4"]
    assert (found[0], found[3]) == (public[0], public[3])
    assert None not in [e.label for e in found]


def test_draws_depend_on_the_seed_alone():
    public = [example("x", None, str(i)) for i in range(50)]

    def draw(seed: int) -> list:
        return [e.answer for e in with_pseudo_labels(Words(), NONE, public, teacher(), DRAWN, seed)]

    assert draw(1) == draw(1) != draw(2)


def test_examples_without_the_method_are_the_users_error():
    class Bare:
        prompt, label, answer, id = "x", None, None, "1"

    with pytest.raises(UserError, match="Bare has no method with_answer"):
        with_pseudo_labels(Words(), NONE, [Bare()], teacher(), SETTINGS, 1)


def test_the_mean_of_all_opinions_decides():
    public = [example("x", None), example("y", 0), example("y", None)]
    one = [torch.tensor([0.6, 0.4]), torch.tensor([0.3, 0.7])]
    other = [torch.tensor([0.1, 0.9]), torch.tensor([0.5, 0.5])]  # means (0.35, 0.65) and (0.4, 0.6)
    assert [e.answer for e in label(public, [one], SETTINGS, 0)] == [0, 0, 1]
    assert [e.answer for e in label(public, [one, other], SETTINGS, 0)] == [1, 0, 1]


def test_the_models_have_a_say_from_round_2_on(tiny_config, tmp_path, monkeypatch):
    def wrong(modality, model, examples, size):
        return [3 - 6 * p for p in predict(modality, model, examples, size)]

    monkeypatch.setattr(server, "predict", wrong)
    alone = {"server.pseudo_labels.teachers": ["regression"]}
    one = fedcollm.run(changed(tiny_config, ON), tmp_path / "one")
    other = fedcollm.run(changed(tiny_config, ON | alone), tmp_path / "other")
    assert one.records[1].losses == other.records[1].losses
    assert one.records[2].losses != other.records[2].losses


def test_without_clients_the_models_label_from_round_2_on(tiny_config, tmp_path):
    two = changed(tiny_config, ON | {"server.pseudo_labels": None})
    none, own = (METHODS[name].configure(two)[""] for name in ("no_clients", "plus_without_clients"))
    own = changed(own, {f"{side}.max_grad_norm": None for side in ("client", "server")})
    own = changed(own, {"server.distillation.teach_where_better": False})
    one, other = (fedcollm.run(config, tmp_path / name) for config, name in ((none, "one"), (own, "other")))
    assert one.records[1].losses == other.records[1].losses
    assert one.records[2].losses != other.records[2].losses
    assert {r.bytes_up for r in (*one.records, *other.records)} == {0}


def test_teachers_other_than_the_regression_need_no_clients_and_no_sums(tiny_config):
    models = ON | {"server.pseudo_labels": {"teachers": ["llm", "slm"]}}
    for change in ({"federation.participants": []}, {"federation.upload": "float16"}):
        assert changed(tiny_config, models | change).statistics.ridge is None
    config = changed(tiny_config, ON)
    assert config.statistics.ridge == config.server.pseudo_labels


@pytest.mark.parametrize(
    ("teachers", "message"), [([], "at least 1"), (["slm", "slm"], "'slm' stands there twice"), (["sml"], "choose one")]
)
def test_teachers_are_named_once_each(teachers, message):
    with pytest.raises(ValueError, match=message):
        PseudoLabelConfig(teachers=teachers)


# --- in a run ---

ON = {"server.pseudo_labels": {"columns": 64}, "task.unlabelled_size": 48, "task.public_size": 32}


def test_record_0_has_the_bytes_of_the_statistics(tiny_config, tmp_path):
    result = fedcollm.run(changed(tiny_config, ON), tmp_path)
    first, *others = result.records
    assert first.bytes_up == 4 * (64 * 65 // 2 + 64 * 2)
    assert first.participants == ("0", "1")
    assert {r.bytes_up for r in others} == {others[0].bytes_up}
    assert first.scores.keys() == {"slm", "llm"}


@pytest.mark.parametrize("secure", [False, True])
def test_every_client_is_asked_once_whatever_fraction_a_round_samples(tiny_config, tmp_path, secure):
    values = {
        "task.clients": 5,
        "task.private_size": 16,
        "federation.fraction": 0.6,
        "server.pseudo_labels.always": True,
    }
    config = changed(tiny_config, ON | values | {"federation.secure_aggregation.enabled": secure})
    first, *others = fedcollm.run(config, tmp_path).records
    assert first.participants == ("0", "1", "2", "3", "4")
    assert {len(record.participants) for record in others} == {3}


def test_labels_change_what_is_learned_and_the_supervised_loss_has_more_rows(tiny_config, tmp_path):
    one = fedcollm.run(changed(tiny_config, ON), tmp_path / "one")
    other = fedcollm.run(changed(tiny_config, ON | {"server.pseudo_labels": None}), tmp_path / "other")
    assert one.records[1].losses["llm"] != other.records[1].losses["llm"]
    assert one.records[0].scores == other.records[0].scores


def test_secure_sums_teach_the_same(tiny_config, tmp_path):
    three = ON | {"task.clients": 3, "federation.secure_aggregation.simulate_quantization": True}
    secure = three | {"federation.secure_aggregation": {"enabled": True}}
    one, other = (fedcollm.run(changed(tiny_config, c), tmp_path / n) for n, c in (("a", three), ("b", secure)))
    assert [r.scores for r in one.records] == [r.scores for r in other.records]
    assert [r.losses for r in one.records] == [r.losses for r in other.records]


def test_a_resumed_run_equals_an_uninterrupted_one_and_asks_once(tiny_config, tmp_path, monkeypatch):
    config = changed(tiny_config, ON)
    whole = fedcollm.run(config, tmp_path / "whole")
    steps = rounds(config, tmp_path / "cut", Inputs())
    next(steps), next(steps)
    steps.close()
    from fedcollm.federation.server import Server

    monkeypatch.setattr(Server, "ask_statistics", None)
    resumed = fedcollm.run(config, tmp_path / "cut", resume=True)
    assert [r.scores for r in resumed.records] == [r.scores for r in whole.records]
    assert [r.losses for r in resumed.records] == [r.losses for r in whole.records]


def test_a_teacher_that_is_worse_than_the_models_is_not_used(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "build_teacher", lambda *_: {WEIGHTS: torch.ones(64, 2), ACCURACY: torch.tensor(0.0)})
    one = fedcollm.run(changed(tiny_config, ON), tmp_path / "one")
    other = fedcollm.run(changed(tiny_config, ON | {"server.pseudo_labels": None}), tmp_path / "other")
    assert [r.losses for r in one.records] == [r.losses for r in other.records]
    assert "teacher" not in directories.load_round(tmp_path / "one")[1]
    (note,) = one.records[0].notes
    assert re.fullmatch(r"pseudo-labels: the regression labels 0\.0 % .* model \d+\.\d %: not used", note)
    assert read_run(tmp_path / "one").data["notes"][-1] == note
    assert other.records[0].notes == ()


def test_a_teacher_that_is_always_used_is_used_however_bad_it_is():
    told = "pseudo-labels: the regression labels 0.0 % of labelled D_a correctly: used"
    assert verdict(0.0, None) == (True, told)
    assert verdict(0.5, 0.5)[0] is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task.unlabelled_size": 0}, "task.unlabelled_size is 0"),
        ({"server.unlabelled_per_round": 0}, "server.unlabelled_per_round is 0"),
        ({"server.epochs": 0}, "server.epochs is 0"),
        ({"server.pseudo_labels": {"columns": 16385}}, "less than or equal to 16384"),
        ({"server.pseudo_labels": {"ridge": 9e-5}}, "greater than or equal to 0.0001"),
        ({"server.pseudo_labels": {"ridge": 1.1e6}}, "less than or equal to 1000000"),
        (
            {
                "task.clients": 5,
                "federation.fraction": 0.6,
                "federation.secure_aggregation": {"enabled": True, "threshold": 3},
            },
            "threshold 3 is not more than 2/3",
        ),
        ({"federation.participants": []}, "clients"),
        ({"federation.upload": "float16"}, "federation.upload"),
        ({"client.ranks": [4, 8]}, "client.ranks"),
        ({"federation.aggregation": "median"}, "median"),
        ({"task.format.choices": None}, "task.format.choices"),
        (
            {
                "federation.secure_aggregation.simulate_quantization": True,
                "federation.secure_aggregation.value_range": 0.5,
            },
            "value_range",
        ),
    ],
)
def test_what_it_cannot_be_combined_with_is_refused(tiny_config, change, message):
    with pytest.raises(ValueError, match=message) as error:
        changed(tiny_config, ON | change)
    assert "pseudo_labels" in str(error.value)


@pytest.mark.parametrize("method", ["fedavg", "fedavg_ce", "llm2slm", "centralized", "centralized_llm", "closed_form"])
def test_controls_have_no_labels_from_the_clients(tiny_config, method):
    for config in METHODS[method].configure(changed(tiny_config, ON)).values():
        assert config.server.pseudo_labels is None


def test_the_whole_of_plus_runs_on_sums_alone(tiny_config, model_directories, tmp_path):
    cut = {"slm.source": model_directories["llm"], "slm.layers": 2, "task.clients": 3}
    plain = changed(tiny_config, ON | cut | {"federation.secure_aggregation.simulate_quantization": True})
    secure = changed(tiny_config, ON | cut | {"federation.secure_aggregation": {"enabled": True}})
    one, other = (METHODS["fedcollm_plus"].configure(config)[""] for config in (plain, secure))
    assert other.server.layer_transfer == 1
    records = [fedcollm.run(config, tmp_path / name).records for config, name in ((one, "a"), (other, "b"))]
    assert [r.scores for r in records[0]] == [r.scores for r in records[1]]
    assert [r.losses for r in records[0]] == [r.losses for r in records[1]]
