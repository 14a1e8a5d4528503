"""What a configuration says of the options of a method reaches the parts that obey it."""

import dataclasses

import pytest
import torch

from fedcollm.config import RunConfig
from fedcollm.config.baselines import changed
from fedcollm.data.catalogue import base_models
from fedcollm.data.partition import describe
from fedcollm.federation.aggregation.checked import CheckedAggregator
from fedcollm.federation.aggregation.plain import PlainAggregator
from fedcollm.federation.client import Client
from fedcollm.models.adapters import read_adapter
from fedcollm.runs.build import Inputs, build_federation
from fedcollm.runs.build_models import build_model, set_backends

SECURE = "federation.secure_aggregation.enabled"
CHANGES = {
    "client.proximal": 0.25,
    "client.max_grad_norm": 0.5,
    "server.max_grad_norm": 2.0,
    "server.distillation.divergence": "skew_kl",
    "server.distillation.teach_where_better": True,
    "server.distillation.warmup_rounds": 3,
    "federation.server_optimizer": {
        "kind": "fedadam",
        "learning_rate": 0.01,
        "momentum": 0.5,
        "decay": 0.75,
        "tau": 0.1,
    },
}


def test_sections_reach_server_and_clients_as_they_are(tiny_config, tmp_path):
    config = changed(tiny_config, CHANGES)
    server = build_federation(config, tmp_path).server
    assert (server.settings, server.federation, server.evaluation) == (
        config.server,
        config.federation,
        config.evaluation,
    )
    assert server.settings.distillation.divergence == "skew_kl"
    clients = server.transport._clients.values()
    assert [client.settings for client in clients] == [config.client, config.client]
    assert {client.agreement.identity.run for client in clients} == {server.identity.run} == {"tiny/0"}


@pytest.fixture
def cut_config(tiny_config, monkeypatch, tmp_path) -> RunConfig:
    """The SLM is two of the LLM's four layers."""
    monkeypatch.setenv("FEDCOLLM_CACHE", str(tmp_path / "cache"))
    source = tiny_config.llm.source
    return changed(tiny_config, {"slm.source": source, "slm.layers": 2, "server.layer_transfer": 0.5})


def test_layer_transfer_knows_the_layers_that_the_slm_kept(cut_config, tmp_path):
    server = build_federation(cut_config, tmp_path).server
    assert server.settings.layer_transfer == 0.5
    assert list(server.slm_layers) == [0, 3]  # first and last of four
    start, name = server.adapters(), "base_model.model.model.layers.{}.mlp.up_proj.lora_A.weight"
    assert torch.equal(start["llm"][name.format(3)], start["slm"][name.format(1)])
    assert not torch.equal(start["llm"][name.format(1)], start["slm"][name.format(1)])


def test_layer_transfer_from_a_whole_slm_goes_to_every_layer(cut_config, tmp_path):
    server = build_federation(changed(cut_config, {"slm.layers": None}), tmp_path).server
    assert list(server.slm_layers) == [0, 1, 2, 3]


def test_layer_transfer_without_an_llm_moves_nothing(cut_config, tmp_path):
    server = build_federation(changed(cut_config, {"server.epochs": 0}), tmp_path).server
    assert server.pair.llm is None
    assert server.run_round(1, score=False).participants == ("0", "1")


def test_parties_that_build_the_slm_apart_have_the_same_frozen_a(tiny_config, tmp_path):
    config = changed(tiny_config, {"slm.adapter.freeze_a": True})

    def frozen(config: RunConfig) -> dict[str, torch.Tensor]:
        model = build_model(config, "slm", base_models(config.task), [], tmp_path)
        assert all(name.endswith("lora_B.weight") for name in read_adapter(model))
        return {name: p.detach() for name, p in model.named_parameters() if "lora_A" in name}

    one = frozen(config)
    torch.manual_seed(99)
    two, other = frozen(config), frozen(changed(config, {"seed": 1}))
    assert len(one) == 14
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_attention_of_cudnn_is_off_as_its_gradients_may_be_nan(tiny_config):
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        set_backends(tiny_config)
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("columns", [64, 192])
def test_gradients_of_padded_attention_are_finite_on_a_gpu(tiny_config, columns):
    set_backends(changed(tiny_config, {"device": "cuda"}))
    query, key, value = (torch.randn(4, 4, columns, 64, device="cuda", dtype=torch.bfloat16) * 8 for _ in range(3))
    query.requires_grad_()
    mask = torch.ones(columns, columns, device="cuda", dtype=torch.bool).tril().expand(4, 1, -1, -1).clone()
    mask[0, :, :, :4] = False
    mask[0, :, :4, :4] = torch.eye(4, device="cuda", dtype=torch.bool)
    torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).float().sum().backward()
    assert query.grad is not None
    assert query.grad.isfinite().all()


CLEANING = {"task.cleaning": {"labels": "keep", "duplicates": "near"}}


def test_simulated_clients_train_on_what_cleaning_leaves(tiny_config, tmp_path, monkeypatch):
    """Each client loses its last example, as it would on a machine of its own; the record counts it."""
    from fedcollm.data import cleaning

    def without_last(examples, settings, modality, slm, seed):
        return cleaning.Cleaned(list(examples)[:-1], {"near duplicates dropped": 1})

    plain = build_federation(tiny_config, tmp_path).split
    monkeypatch.setattr(cleaning, "cleaned", without_last)
    federation = build_federation(changed(tiny_config, CLEANING), tmp_path)
    clients = federation.server.transport._clients
    assert {name: client.examples for name, client in clients.items()} == federation.split.private
    assert federation.split.private == {name: some[:-1] for name, some in plain.private.items()}
    assert (federation.split.test, federation.split.public) == (plain.test, plain.public)
    left = len(plain.private["0"]) - 1
    note = f"client 0: cleaning left {left} examples (near duplicates dropped: 1)"
    assert note in describe(federation.split)["notes"]


def test_cleaning_is_the_same_again(tiny_config, tmp_path):
    config = changed(tiny_config, {"task.cleaning": {"duplicates": "near", "labels": "relabel"}})
    splits = [build_federation(config, tmp_path).split for _ in range(2)]
    assert splits[0] == splits[1]


def test_another_client_stands_in_for_the_products_own(tiny_config, tmp_path):
    given = []

    def stand_in(client: Client) -> Client:
        given.append(client.id)
        return dataclasses.replace(client, examples=client.examples[:1]) if client.id == "1" else client

    for secure in (False, True):
        config = changed(tiny_config, {"task.clients": 3, "task.private_size": 2} | ({SECURE: True} if secure else {}))
        server = build_federation(config, tmp_path, Inputs(stand_in=stand_in)).server
        clients = server.transport._clients
        assert [len((one.client if secure else one).examples) for one in clients.values()] == [2, 1, 2]
    assert given == ["0", "1", "2"] * 2


def test_private_examples_are_changed_before_clients_clean_them(tiny_config, tmp_path):
    def repeat(client, examples):
        return examples * 3 if client == "1" else examples

    values = {"task.clients": 2, "task.private_size": 2, "task.cleaning": {"duplicates": "exact", "labels": "keep"}}
    split = build_federation(changed(tiny_config, values), tmp_path, Inputs(private=repeat)).split
    assert [len(own) for own in split.private.values()] == [2, 2]
    (note,) = [note for note in split.notes if "cleaning" in note]
    assert note == "client 1: cleaning left 2 examples (duplicates dropped: 4)"
    values["task.cleaning"] = None
    split = build_federation(changed(tiny_config, values), tmp_path, Inputs(private=repeat)).split
    assert [len(own) for own in split.private.values()] == [2, 6]


@pytest.mark.parametrize(("values", "kind"), [({"federation.max_drop": 0.1}, CheckedAggregator), ({}, PlainAggregator)])
def test_check_and_trust_get_the_labelled_public_examples(tiny_config, tmp_path, values, kind):
    config = changed(tiny_config, {"federation.aggregation": "trust", "task.unlabelled_size": 1, **values})
    server = build_federation(config, tmp_path).server
    assert type(server.aggregator) is kind
    own = (server.aggregator.inner if values else server.aggregator).reference
    labelled = [example for example in server.public if example.label is not None]
    assert list(own.examples) == labelled
    assert len(labelled) < len(server.public)
    assert not values or list(server.aggregator.score.examples) == labelled
