"""ε is the accountant's own figure; what can't be promised is refused."""

import math
import sys
from statistics import NormalDist

import dp_accounting as dp
import pytest
import yaml
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from rich.console import Console

from fedcollm.config import RunConfig
from fedcollm.config.loading import commented_yaml
from fedcollm.errors import RoundFailedError, UserError
from fedcollm.federation.server import Server
from fedcollm.privacy.accounting import ClientPrivacy, ExamplePrivacy, check_sum, sum_correction
from fedcollm.progress import shown
from fedcollm.runs import directory as run_directory
from fedcollm.runs.build_clients import build_privacy
from fedcollm.runs.estimate import check
from fedcollm.runs.runner import evaluate_run, rounds

CLIENT = {"level": "client", "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5}
EXAMPLE = {**CLIENT, "level": "example", "sampling_rate": 0.1}
SECURE = {"secure_aggregation": True, "aggregation": "uniform"}


def by_hand(event, count: int, delta: float) -> float:
    return RdpAccountant().compose(event, count).get_epsilon(delta)


# --- accounting ---


@pytest.mark.parametrize(("noise", "rounds", "delta"), [(1.0, 1, 1e-5), (1.0, 10, 1e-5), (4.0, 50, 1e-3)])
def test_client_level_is_the_accountants_figure_for_a_gaussian_a_round(noise, rounds, delta):
    expected = by_hand(dp.GaussianDpEvent(noise), rounds, delta)
    assert ClientPrivacy(0.3, noise, delta).epsilon(rounds) == expected


def test_client_level_agrees_with_the_formula_for_concentrated_privacy():
    # ρ = r / (2 z²) = 0.5; ε ≤ ρ + 2 √(ρ ln(1/δ)) (Bun and Steinke 2016, Proposition 1.3), which is a little loose
    bound = 0.5 + 2 * math.sqrt(0.5 * math.log(1e5))
    assert 0.85 * bound < ClientPrivacy(1.0, 2.0, 1e-5).epsilon(4) < bound


@pytest.mark.parametrize(("noise", "rate", "steps", "rounds"), [(1.0, 0.1, 10, 1), (1.0, 0.1, 10, 5), (2.0, 1.0, 1, 7)])
def test_example_level_is_the_bound_of_the_loss_distribution_of_poisson_sampled_steps(noise, rate, steps, rounds):
    event = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise))
    fine = PLDAccountant(value_discretization_interval=1e-4).compose(event, steps * rounds).get_epsilon(1e-5)
    found = ExamplePrivacy(0.3, noise, 1e-5, rate, steps).epsilon(rounds)
    assert fine <= found == pytest.approx(fine, rel=1e-3)
    assert found < 0.95 * by_hand(event, steps * rounds, 1e-5)


def test_example_level_with_a_single_full_batch_is_the_analytic_gaussian_mechanism():
    # δ(ε) = Φ(1 / 2z − εz) − e^ε Φ(−1 / 2z − εz) (Balle and Wang 2018, Theorem 8)
    epsilon, z = ExamplePrivacy(1.0, 2.0, 1e-5, 1.0, 1).epsilon(1), 2.0
    below = NormalDist().cdf
    delta = below(1 / (2 * z) - epsilon * z) - math.exp(epsilon) * below(-1 / (2 * z) - epsilon * z)
    assert delta == pytest.approx(1e-5, rel=0.01)
    assert delta <= 1e-5


def test_example_level_with_hardly_any_noise_is_the_figure_of_renyi_accounting():
    event = dp.PoissonSampledDpEvent(0.5, dp.GaussianDpEvent(0.1))
    assert ExamplePrivacy(1.0, 0.1, 1e-5, 0.5, 10).epsilon(1) == by_hand(event, 10, 1e-5) > 50


def test_nothing_is_spent_before_the_first_round_and_more_in_every_one():
    for privacy in (ClientPrivacy(1.0, 1.0, 1e-5), ExamplePrivacy(1.0, 1.0, 1e-5, 0.1, 10)):
        spent = [privacy.epsilon(rounds) for rounds in range(4)]
        assert spent[0] == 0.0
        assert spent == sorted(set(spent))


def test_accountant_says_nothing_of_orders_that_it_leaves_out(caplog):
    ExamplePrivacy(1.0, 0.5, 1e-3, 0.1, 10).epsilon(1)
    assert caplog.text == ""


def test_missing_accountant_is_the_users_error_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(UserError, match=r"dp-accounting.*pip install 'fedcollm\[privacy\]'"):
        ClientPrivacy(1.0, 1.0, 1e-5).epsilon(1)


# --- sums of discrete Gaussians ---


def test_correction_by_hand():
    assert sum_correction(0.5, 1) == 0.0
    assert sum_correction(0.5, 2) == pytest.approx(10 * math.exp(-(math.pi**2) / 4))
    expected = 10 * (math.exp(-(math.pi**2)) + math.exp(-4 * math.pi**2 / 3))
    assert sum_correction(1.0, 3) == pytest.approx(expected)


def test_noise_of_two_steps_of_the_grid_is_enough_for_many_clients_and_parameters():
    check_sum(2.0, clients=10_000, dimension=10**9, noise_multiplier=10.0)


def test_noise_of_one_step_is_refused_with_what_to_do():
    with pytest.raises(UserError, match=r"too few.*noise_multiplier"):
        check_sum(1.0, clients=4, dimension=1000, noise_multiplier=1.0)


# --- what is refused ---


def config(privacy, adapter="lora", **federation) -> RunConfig:
    values = {"privacy": privacy} | federation
    return RunConfig.model_validate({"slm": {"adapter": {"kind": adapter}}, "federation": values})


def without(section, key) -> dict:
    return {name: value for name, value in section.items() if name != key}


@pytest.mark.parametrize("federation", [SECURE, {"aggregation": "uniform"}], ids=["secure", "plain"])
def test_example_level_is_allowed_with_and_without_secure_aggregation(federation):
    assert config(EXAMPLE, **federation).federation.privacy.level == "example"


def test_client_level_is_allowed_under_secure_aggregation_with_any_adapter():
    assert config(CLIENT, "dora", **SECURE).federation.privacy.sampling_rate is None


@pytest.mark.parametrize(
    ("privacy", "federation", "adapter", "reason"),
    [
        (CLIENT, {"aggregation": "uniform"}, "lora", "share of the noise.*secure_aggregation: true"),
        (CLIENT, {"secure_aggregation": True}, "lora", "numbers of examples, which are private.*aggregation: uniform"),
        (EXAMPLE, {}, "lora", "numbers of examples, which are private.*aggregation: uniform"),
        ({**CLIENT, "sampling_rate": 0.1}, SECURE, "lora", "sampling_rate 0.1 has no effect at level client"),
        (without(EXAMPLE, "sampling_rate"), SECURE, "lora", "level example needs sampling_rate"),
        (EXAMPLE, SECURE, "ia3", "per-example gradients, which slm.adapter.kind: ia3 does not support"),
        (EXAMPLE, SECURE, "dora", "slm.adapter.kind: dora does not support"),
        ({**CLIENT, "noise_multiplier": 0.0}, SECURE, "lora", "noise_multiplier\n.*greater than 0"),
        ({**CLIENT, "noise_multiplier": -1.0}, SECURE, "lora", "noise_multiplier\n.*greater than 0"),
        ({**CLIENT, "noise_multiplier": math.nan}, SECURE, "lora", "noise_multiplier\n"),
        ({**CLIENT, "clip": 0.0}, SECURE, "lora", "clip\n.*greater than 0"),
        ({**CLIENT, "clip": math.inf}, SECURE, "lora", "clip\n.*finite"),
        ({**CLIENT, "delta": 0.0}, SECURE, "lora", "delta\n.*greater than 0"),
        ({**CLIENT, "delta": 1.0}, SECURE, "lora", "delta\n.*less than 1"),
        ({**EXAMPLE, "sampling_rate": 0.0}, SECURE, "lora", "sampling_rate\n.*greater than 0"),
        ({**EXAMPLE, "sampling_rate": 1.5}, SECURE, "lora", "sampling_rate\n.*less than or equal to 1"),
        ({**CLIENT, "level": "server"}, SECURE, "lora", "level\n.*'client' or 'example'"),
        (without(CLIENT, "delta"), SECURE, "lora", "delta\n.*required"),
        ({**CLIENT, "epsilon": 1.0}, SECURE, "lora", "epsilon\n.*not permitted"),
    ],
)
def test_combination_without_a_guarantee_is_refused(privacy, federation, adapter, reason):
    with pytest.raises(ValueError, match=f"(?s){reason}"):
        config(privacy, adapter, **federation)


def test_proximal_term_is_refused_at_example_level_only():
    proximal = {"client": {"proximal": 0.01}}
    values = {"federation": {"privacy": EXAMPLE, "aggregation": "uniform"}}
    with pytest.raises(ValueError, match=r"client\.proximal 0\.01 .*client\.proximal: 0"):
        RunConfig.model_validate(values | proximal)
    assert RunConfig.model_validate(values).client.proximal == 0
    secure = RunConfig.model_validate({"federation": {"privacy": CLIENT} | SECURE} | proximal)
    assert secure.client.proximal == 0.01


def test_clipped_sums_of_gradients_are_refused_at_example_level_only():
    clipped = {"client": {"max_grad_norm": 1.0}}
    values = {"federation": {"privacy": EXAMPLE, "aggregation": "uniform"}}
    with pytest.raises(ValueError, match=r"client\.max_grad_norm: null"):
        RunConfig.model_validate(values | clipped)
    secure = RunConfig.model_validate({"federation": {"privacy": CLIENT} | SECURE} | clipped)
    assert secure.client.max_grad_norm == 1.0


def test_all_reasons_are_in_one_message():
    with pytest.raises(ValueError, match=r"(?s)no effect at level client.*numbers of examples.*share of the noise"):
        config({**CLIENT, "sampling_rate": 0.1})


# --- runs ---


def private(config: RunConfig, section, clients: int = 3, **federation) -> RunConfig:
    values = config.model_dump()
    values["task"]["clients"] = clients
    values["federation"] |= {"privacy": section, "aggregation": "uniform"} | federation
    return RunConfig.model_validate(values)


@pytest.mark.parametrize(
    ("section", "secure"),
    [(CLIENT, True), (EXAMPLE, True), (EXAMPLE, False)],
    ids=["client", "example, secure", "example, plain"],
)
def test_run_spends_what_was_said_before_it_began(tiny_config, tmp_path, capsys, section, secure):
    config = private(tiny_config, {**section, "noise_multiplier": 2.0}, secure_aggregation=secure)
    with shown(Console(width=200)):
        records = list(rounds(config, tmp_path / "run"))
    if section is CLIENT:
        spent = [by_hand(dp.GaussianDpEvent(2.0), count, 1e-5) for count in (1, 2)]
    else:  # one epoch at a rate of 0.1 is ten steps
        spent = [ExamplePrivacy(1.0, 2.0, 1e-5, 0.1, 10).epsilon(count) for count in (1, 2)]
    assert [record.epsilon for record in records] == [0.0, *spent]
    assert f"privacy: 2 rounds will spend ε = {records[-1].epsilon:.3g} at δ = 1e-05\n" in capsys.readouterr().out
    assert run_directory.read_records(tmp_path / "run") == records
    assert check(config).epsilon == records[-1].epsilon
    assert evaluate_run(tmp_path / "run", "slm").value == records[-1].scores["slm"]


def test_run_without_privacy_has_no_epsilon(tiny_config, tmp_path):
    assert [record.epsilon for record in rounds(tiny_config, tmp_path / "run")] == [None, None, None]
    assert not (tmp_path / "run" / run_directory.STARTED).exists()
    assert check(tiny_config).epsilon is None


def test_round_that_is_tried_again_spends_again(tiny_config, tmp_path, capsys, monkeypatch):
    config = private(tiny_config, EXAMPLE, secure_aggregation=False)
    running = rounds(config, tmp_path / "run")
    assert [next(running).round, next(running).round] == [0, 1]

    def broken(self, *arguments, **options):
        raise RoundFailedError("the server dies after the clients have answered")

    with monkeypatch.context() as patch:
        patch.setattr(Server, "run_round", broken)
        with pytest.raises(RoundFailedError):
            next(running)
    with shown(Console(width=200)):
        records = list(rounds(None, tmp_path / "run", resume=True))
    privacy = build_privacy(config)
    assert [record.epsilon for record in records] == [privacy.epsilon(n) for n in (0, 1, 3)]
    said = f"will spend ε = {privacy.epsilon(3):.3g} at δ = 1e-05, including 1 that started"
    assert said in capsys.readouterr().out


def test_resumed_run_goes_on_counting(tiny_config, tmp_path):
    config = private(tiny_config, EXAMPLE, secure_aggregation=False)
    running = rounds(config, tmp_path / "run")
    assert [next(running).round, next(running).round] == [0, 1]
    running.close()
    privacy = build_privacy(config)
    resumed = list(rounds(None, tmp_path / "run", resume=True))
    assert [record.epsilon for record in resumed] == [privacy.epsilon(n) for n in (0, 1, 2)]


def test_steps_of_a_round_are_epochs_by_sampling_rate(tiny_config):
    values = private(tiny_config, {**EXAMPLE, "sampling_rate": 0.3}).model_dump()
    values["client"]["epochs"] = 2
    assert build_privacy(RunConfig.model_validate(values)) == ExamplePrivacy(1.0, 1.0, 1e-5, 0.3, 7)


def test_noise_too_small_for_the_grid_ends_the_run_before_it_begins(tiny_config, tmp_path):
    config = private(tiny_config, {**CLIENT, "noise_multiplier": 1e-9}, secure_aggregation=True)
    with pytest.raises(UserError, match="too few"):
        next(iter(rounds(config, tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_configuration_with_privacy_is_printed_with_a_comment_a_key(tiny_config):
    text = commented_yaml(private(tiny_config, EXAMPLE))
    assert "  privacy:\n    level: example  # what is protected: client: " in text
    assert "    sampling_rate: 0.1  # level example only: " in text
    assert RunConfig.model_validate(yaml.safe_load(text)) == private(tiny_config, EXAMPLE)
    assert "  privacy: null  # differential privacy: level" in commented_yaml(tiny_config)
