"""What of an adapter travels, by hand on tensors of a few values."""

import pytest
import torch
from tests.parties import mean_of

from fedcollm.errors import UserError
from fedcollm.federation.aggregation.validation import Expected, validate_updates
from fedcollm.federation.upload_format import WHOLE, UploadFormat, first, rounded, truncated, widened
from fedcollm.messages import ClientUpdate, TrainRequest, adapter_bytes
from fedcollm.transports.wire import decode, encode

HALF, BRAIN = UploadFormat(torch.float16), UploadFormat(torch.bfloat16)
THETA = {"w": torch.zeros(3)}


def update(values: list[float], dtype: torch.dtype, client: str = "a") -> ClientUpdate:
    return ClientUpdate(client, 1, {"w": torch.tensor(values, dtype=dtype)}, 1, 0.0)


def reasons(answer: ClientUpdate, uploads: dict[str, UploadFormat]) -> dict[str, str]:
    lost: dict[str, str] = {}
    assert list(validate_updates([answer], Expected(TrainRequest(1, THETA), ["a"], 100.0, uploads=uploads), lost)) == []
    return lost


@pytest.mark.parametrize(
    ("dtype", "value", "nearest"),
    [
        # between 1 and 1 + 2^-10, and between 1 + 2^-10 and 1 + 2^-9, nearer to the even one where they are as near
        (torch.float16, 1 + 2**-12, 1.0),
        (torch.float16, 1 + 2**-11 + 2**-13, 1 + 2**-10),
        (torch.float16, 1 + 2**-10 + 2**-11, 1 + 2**-9),
        # between 1 and 1 + 2^-7
        (torch.bfloat16, 1 + 2**-9, 1.0),
        (torch.bfloat16, 1 + 2**-8 + 2**-10, 1 + 2**-7),
        # smaller than any normal float16, in steps of 2^-24
        (torch.float16, 3.6 * 2**-24, 4 * 2**-24),
    ],
)
def test_values_are_rounded_to_the_nearest(dtype, value, nearest):
    assert rounded({"w": torch.tensor([value])}, dtype)["w"].item() == nearest


def test_value_that_float16_does_not_have_names_its_tensor():
    adapter = {"good": torch.tensor([65504.0]), "layers.3.lora_B": torch.tensor([1.0, -70000.0])}
    with pytest.raises(UserError, match=r"tensor layers.3.lora_B has a value of 7e\+04, .*float16 is 6.55e\+04"):
        HALF.pack(adapter)
    assert BRAIN.pack(adapter)["layers.3.lora_B"].tolist() == [1.0, -70144.0]


def test_widening_changes_no_value():
    narrow = {"w": torch.tensor([0.1, 1e-7, 65504.0], dtype=torch.float16)}
    wide = widened(narrow, THETA)
    assert wide["w"].dtype == torch.float32
    assert wide["w"].tolist() == narrow["w"].tolist()


def test_whole_upload_is_the_adapter_itself():
    adapter = {"w": torch.tensor([1 / 3])}
    assert WHOLE.pack(adapter) is adapter


@pytest.mark.parametrize(("upload", "size"), [(WHOLE, 12), (HALF, 6), (BRAIN, 6)])
def test_expected_form_has_the_bytes_of_the_one_that_is_sent(upload, size):
    sent, expected = upload.pack(THETA), upload.expected(THETA)
    assert adapter_bytes(sent) == adapter_bytes(expected) == size
    assert [(t.shape, t.dtype) for t in sent.values()] == [(t.shape, t.dtype) for t in expected.values()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_travel_as_sixteen_bits(dtype):
    values = torch.arange(1000.0) / 1000
    long, short = (len(encode(ClientUpdate("a", 1, {"w": t}, 1, 0.0))) for t in (values, values.to(dtype)))
    assert long - 2000 - 8 <= short <= long - 2000 + 8  # the name of the dtype, and padding of the head
    back = decode(encode(ClientUpdate("a", 1, {"w": values.to(dtype)}, 1, 0.0)), 10_000)
    assert isinstance(back, ClientUpdate)
    assert torch.equal(back.adapter["w"], values.to(dtype))


def test_server_takes_the_mean_of_what_came_in_thetas_dtype():
    answers = [update([1.0, 2.0, 3.0], torch.float16), update([2.0, 2.0, 0.0], torch.bfloat16, "b")]
    uploads = {"a": HALF, "b": BRAIN}
    kept = list(validate_updates(answers, Expected(TrainRequest(1, THETA), ["a", "b"], 100.0, uploads=uploads), {}))
    assert [one.adapter["w"].dtype for one in kept] == [torch.float32] * 2
    mean = mean_of(kept).adapter["w"]
    assert mean.dtype == torch.float32
    assert mean.tolist() == [1.5, 2.0, 1.5]


@pytest.mark.parametrize(
    ("dtype", "uploads", "reason"),
    [
        (torch.float32, {"a": HALF}, "tensor w is [(3,), 'torch.float32'], not [(3,), 'torch.float16']"),
        (torch.float16, {}, "tensor w is [(3,), 'torch.float16'], not [(3,), 'torch.float32']"),
        (torch.bfloat16, {"a": HALF}, "tensor w is [(3,), 'torch.bfloat16'], not [(3,), 'torch.float16']"),
    ],
)
def test_update_in_another_dtype_than_agreed_is_refused(dtype, uploads, reason):
    assert reasons(update([1.0, 2.0, 3.0], dtype), uploads) == {"a": reason}


def test_infinite_value_in_sixteen_bits_is_refused():
    assert reasons(update([float("inf"), 0.0, 0.0], torch.float16), {"a": HALF}) == {"a": "tensor w is not finite"}


def test_change_is_measured_in_thetas_dtype():
    assert "the adapter changed by 200 (L2 norm)" in reasons(update([200.0, 0.0, 0.0], torch.float16), {"a": HALF})["a"]


# --- ranks ---

A = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])  # rank 3, 2 inputs
B = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])  # 2 outputs, rank 3
LORA = {"q.lora_A.weight": A, "q.lora_B.weight": B, "q.lora_B.bias": torch.tensor([7.0, 8.0, 9.0, 10.0])}


@pytest.mark.parametrize(
    ("rank", "a", "b"),
    [
        (1, [[1.0, 2.0]], [[1.0], [4.0]]),
        (2, [[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [4.0, 5.0]]),
        (3, A.tolist(), B.tolist()),
        (9, A.tolist(), B.tolist()),
    ],
)
def test_first_components_are_rows_of_a_and_columns_of_b(rank, a, b):
    part = first(LORA, rank)
    assert (part["q.lora_A.weight"].tolist(), part["q.lora_B.weight"].tolist()) == (a, b)
    assert part["q.lora_B.bias"].tolist() == [7.0, 8.0, 9.0, 10.0]


def test_truncated_adapter_has_zeros_in_the_place_of_the_rest():
    whole = truncated(LORA, 1)
    assert whole["q.lora_A.weight"].tolist() == [[1.0, 2.0], [0.0, 0.0], [0.0, 0.0]]
    assert whole["q.lora_B.weight"].tolist() == [[1.0, 0.0, 0.0], [4.0, 0.0, 0.0]]
    assert whole["q.lora_B.bias"].tolist() == [7.0, 8.0, 9.0, 10.0]
    assert A[1, 0] == 3.0


def test_truncated_product_is_that_of_the_first_components():
    whole, part = truncated(LORA, 2), first(LORA, 2)
    assert torch.equal(
        whole["q.lora_B.weight"] @ whole["q.lora_A.weight"], part["q.lora_B.weight"] @ part["q.lora_A.weight"]
    )


def test_lower_rank_in_sixteen_bits_sends_both_fewer_and_shorter_values():
    upload = UploadFormat(torch.bfloat16, 1)
    sent = upload.pack(LORA)
    assert adapter_bytes(sent) == adapter_bytes(upload.expected(LORA)) == 2 * (2 + 2 + 4)
    assert sent["q.lora_B.weight"].dtype == torch.bfloat16


def test_update_of_another_rank_than_agreed_is_refused():
    theta = {"q.lora_A.weight": A}
    answer = ClientUpdate("a", 1, first(theta, 2), 1, 0.0)
    lost: dict[str, str] = {}
    request, uploads = TrainRequest(1, theta), {"a": UploadFormat(rank=1)}
    assert list(validate_updates([answer], Expected(request, ["a"], 100.0, uploads=uploads), lost)) == []
    assert lost == {"a": "tensor q.lora_A.weight is [(2, 2), 'torch.float32'], not [(1, 2), 'torch.float32']"}


def test_change_of_a_lower_rank_is_measured_from_the_components_that_were_sent():
    theta = {"q.lora_A.weight": A}
    answer = ClientUpdate("a", 1, first({"q.lora_A.weight": A + 1}, 1), 1, 0.0)
    request, uploads = TrainRequest(1, theta), {"a": UploadFormat(rank=1)}
    assert list(validate_updates([answer], Expected(request, ["a"], 1.5, uploads=uploads), {}))  # √2
