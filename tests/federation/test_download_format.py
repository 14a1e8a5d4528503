"""What of θ the server broadcasts, and what clients train, by hand on tensors of a few values."""

import pytest
import torch

from fedcollm.errors import RefusalError
from fedcollm.federation.cohort import another
from fedcollm.federation.download_format import EXACT, START, applied, download_format, most_answered, sending
from fedcollm.federation.quantization import SCALES, VALUES
from fedcollm.messages import PhaseRequest, TrainRequest, adapter_bytes

START_OF_ALL = {"w": torch.tensor([1.0, 2.0, 3.0, 4.0])}
THETA = {"w": torch.tensor([1.3, 2.0, 2.81, 4.2])}
INT3 = download_format("int3", START_OF_ALL)


def test_difference_from_the_start_travels_in_few_bits():
    sent = INT3.packed(THETA)  # 0.3, 0, -0.19 and 0.2, in steps of 0.1
    assert adapter_bytes(sent) == 4 + 4 + 32
    assert torch.allclose(INT3.opened(sent)["w"], torch.tensor([1.3, 2.0, 2.8, 4.2]))
    assert adapter_bytes(INT3.form(THETA)) == adapter_bytes(sent)
    received = INT3.received(TrainRequest(1, sent, run="r"))
    assert torch.equal(received.adapter["w"], INT3.opened(sent)["w"])
    assert (received.round_index, received.run) == (1, "r")


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_whole_values_travel_in_their_dtype(name):
    form = download_format(name, START_OF_ALL)
    sent = form.packed(THETA)
    assert sent["w"].dtype == getattr(torch, name)
    back = form.received(TrainRequest(1, sent)).adapter["w"]
    assert back.dtype == torch.float32
    assert torch.equal(back, THETA["w"].to(sent["w"].dtype).float())
    assert (form is EXACT) == (name == "float32")


def test_untrained_adapter_arrives_exactly():
    assert torch.equal(INT3.opened(INT3.packed(START_OF_ALL))["w"], START_OF_ALL["w"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({SCALES: torch.tensor([torch.inf])}, "not finite"),
        ({VALUES: torch.zeros(2, dtype=torch.int32)}, VALUES),
        ({"w": torch.zeros(4)}, "unknown"),
        ({START: torch.zeros(32, dtype=torch.uint8)}, "another adapter than this client begins with"),
    ],
)
def test_client_refuses_what_no_honest_server_sends(changes, reason):
    with pytest.raises(RefusalError, match=reason):
        INT3.received(TrainRequest(1, {**INT3.packed(THETA), **changes}))


def test_client_that_begins_elsewhere_or_gets_another_form_refuses():
    with pytest.raises(RefusalError, match="begins with"):
        download_format("int3", THETA).received(TrainRequest(1, INT3.packed(THETA)))
    for form, sent in ((INT3, THETA), (download_format("bfloat16", THETA), THETA)):
        with pytest.raises(RefusalError, match=r"federation\.download"):
            form.received(TrainRequest(1, sent))


def test_statistics_and_the_final_adapter_travel_as_they_are():
    for request in (TrainRequest(2, THETA, keep=True), TrainRequest(0, {"statistics/gram": torch.zeros(1)})):
        assert INT3.received(request) is request


def test_what_was_rounded_off_does_not_add_up():
    seen = INT3.opened(INT3.packed(THETA))
    mean = {"w": seen["w"] + torch.tensor([0.0, 0.5, 0.25, -0.5])}
    assert torch.allclose(applied(THETA, seen, mean)["w"], torch.tensor([1.3, 2.5, 3.06, 3.7]))
    assert applied(THETA, THETA, mean) is mean


def test_only_requests_to_train_are_given_what_is_sent():
    asked: dict[str, object] = {}

    def ask(requests):
        asked.update(requests)
        return iter(())

    phase, sent = PhaseRequest("share", "n", {}), INT3.packed(THETA)
    assert list(sending(ask, sent)({"a": TrainRequest(1, THETA), "b": phase})) == []
    assert asked["a"] == TrainRequest(1, sent)
    assert asked["b"] is phase


def test_next_round_is_seen_as_another_one():
    def seen(theta):
        return INT3.opened(INT3.packed(theta))

    assert another(START_OF_ALL, THETA, seen) is START_OF_ALL
    for theta in (START_OF_ALL, THETA):
        before = seen(theta)
        changed = another(theta, before, seen)
        assert not torch.equal(seen(changed)["w"], before["w"])
        assert torch.allclose(changed["w"], theta["w"], atol=0.06)


def test_answer_can_have_every_value_in_32_bits():
    assert most_answered(THETA) == 16
    assert most_answered({"w": THETA["w"].bfloat16()}) == 16
    assert most_answered(INT3.packed(THETA)) == 44  # at most 11 values in a word
