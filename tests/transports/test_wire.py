"""Messages survive the wire bit for bit, and bytes that are no message are refused."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from tests.transports.small_federation import relabelled

from fedcollm.errors import RefusalError
from fedcollm.messages import (
    PROTOCOL_VERSION,
    ClientUpdate,
    Failure,
    FinishRequest,
    PhaseAnswer,
    PhaseRequest,
    Score,
    Session,
    TrainRequest,
)
from fedcollm.transports.wire import decode, encode

LIMIT = 10_000
ADAPTER = {
    "b": torch.tensor([[1.0, -2.5], [1 / 3, 1e-30]]),
    "a": torch.tensor([0.1], dtype=torch.float64),
    "half": torch.tensor([1.5, 2.5], dtype=torch.bfloat16),
    "strided": torch.arange(6.0).reshape(2, 3).T,
}
SESSION = Session("run", 3, "00ff", ("a", "b", "c"), 3)


def same_tensors(one, other) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one
    )


@pytest.mark.parametrize("session", [None, SESSION])
def test_request_to_train(session):
    back = decode(encode(TrainRequest(3, ADAPTER, False, session)), LIMIT)
    assert isinstance(back, TrainRequest)
    assert (back.round_index, back.evaluate, back.session) == (3, False, session)
    assert same_tensors(back.adapter, ADAPTER)


def test_request_to_keep_the_result():
    back = decode(encode(TrainRequest(3, ADAPTER, True, None, "run", keep=True)), LIMIT)
    assert isinstance(back, TrainRequest)
    assert (back.keep, back.run) == (True, "run")


def test_end_of_a_run():
    back = decode(encode(FinishRequest(5, ADAPTER, "run")), LIMIT)
    assert isinstance(back, FinishRequest)
    assert (back.round_index, back.run) == (5, "run")
    assert same_tensors(back.adapter, ADAPTER)


def test_session_has_the_same_context_on_both_sides():
    back = decode(encode(TrainRequest(3, {}, True, SESSION)), LIMIT)
    assert isinstance(back, TrainRequest)
    assert back.session is not None
    assert back.session.context == SESSION.context


@pytest.mark.parametrize(
    "score",
    [
        None,
        Score({"acc": 2.0, "acc_norm": 1 / 3}, 7),
        Score({"words": 2.0, "wer": 9.0}, 7, counts={"words": 8, "wer": 8}),
    ],
)
def test_update(score):
    back = decode(encode(ClientUpdate("b", 2, ADAPTER, 5, 1 / 7, score, {"clients": 0.1})), LIMIT)
    assert isinstance(back, ClientUpdate)
    assert (back.client, back.round_index, back.examples, back.loss) == ("b", 2, 5, 1 / 7)
    assert (back.score, back.seconds) == (score, {"clients": 0.1})
    assert same_tensors(back.adapter, ADAPTER)


def test_update_under_privacy_has_no_numbers():
    back = decode(encode(ClientUpdate("b", 2, ADAPTER)), LIMIT)
    assert isinstance(back, ClientUpdate)
    assert (back.examples, back.loss, back.score, back.seconds) == (None, None, None, {})


def test_confusion_table_and_outcomes_stay_at_home():
    score = Score({"acc": 2.0}, 7, {("yes", "no"): 4}, {"case 17": 1.0})
    back = decode(encode(ClientUpdate("b", 2, {}, 5, 0.0, score)), LIMIT)
    assert isinstance(back, ClientUpdate)
    assert back.score == Score({"acc": 2.0}, 7)
    sent = encode(ClientUpdate("b", 2, {}, 5, 0.0, score))
    assert b"yes" not in sent
    assert b"17" not in sent


@pytest.mark.parametrize(
    "message",
    [
        PhaseRequest("share", "00ff", {"a": b"\x00\x01\xff", "b": b"", "c d/é": b"x" * 1000}),
        PhaseRequest("confirm", "00ff", {}),
        PhaseAnswer("a", "00ff", {"vector": bytes(range(256))}),
        Failure("a", "out of memory: “x”"),
    ],
)
def test_small_messages(message):
    assert decode(encode(message), LIMIT) == message


@given(st.dictionaries(st.text(max_size=8).filter(lambda name: name != "__metadata__"), st.binary(max_size=40)))
def test_any_items(items):
    message = PhaseAnswer("a", "00", items)
    assert decode(encode(message), 1_000_000) == message


# --- what is refused ---


def file(metadata: object, tensors=None) -> bytes:
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    return save(tensors or {}, {"fedcollm": f"{PROTOCOL_VERSION}\n{text}"})


GOOD = {"kind": "answer", "client": "a", "nonce": "00"}


def test_the_good_one_of_these_is_good():
    assert decode(file(GOOD), LIMIT) == PhaseAnswer("a", "00", {})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\xff" * 64,
        (10**9).to_bytes(8, "little") + b"{}",
        save({"a": torch.zeros(2)}),
        save({}, {"fedcollm": json.dumps({"kind": "answer", "client": "a", "nonce": "00"})}),
        save({}, {"fedcollm": "9" * 5000 + "\n{}"}),
        file("not JSON"),
        file([]),
        file({**GOOD, "kind": "exec"}),
        file({**GOOD, "more": 1}),
        file({"kind": "answer", "client": "a"}),
        file({**GOOD, "client": 3}),
        file({"kind": "train", "round_index": "1", "evaluate": True, "session": None}),
        file({"kind": "train", "round_index": 1, "evaluate": True, "session": {"run": "r"}}),
        file("[" * 100_000)[:LIMIT],
    ],
    ids=lambda data: repr(data[:24]),
)
def test_bytes_that_are_no_message_are_refused(data):
    with pytest.raises(RefusalError, match="not a message of this protocol"):
        decode(data, LIMIT)


def test_length_of_an_update_tells_nothing_of_its_numbers():
    failed = ClientUpdate("b", 2, {}, 5, 0.0, Score({"acc": 0.0}, 7), {"clients": 0.5, "evaluation": 0.0})
    other = ClientUpdate(
        "b", 2, {}, 5, 2.718281828459045, Score({"acc": 1 / 3}, 7), {"clients": 1 / 7, "evaluation": 1 / 9}
    )
    assert len(encode(failed)) == len(encode(other))


def test_tensors_come_in_the_order_of_their_names():  # so that all clients name the same one when they refuse several
    names = [f"layer {index}" for index in range(20)]
    back = decode(encode(TrainRequest(3, {name: torch.zeros(1) for name in names})), LIMIT)
    assert isinstance(back, TrainRequest)
    assert list(back.adapter) == sorted(names)


def test_same_message_is_the_same_bytes():
    assert len({encode(TrainRequest(3, ADAPTER, True, SESSION)) for _ in range(20)}) == 1


@pytest.mark.parametrize("version", [3, 5])
def test_message_of_another_version_is_refused_with_both(version):
    other = relabelled(encode(Failure("a", "why")), version)
    with pytest.raises(RefusalError, match=rf"version {version}.* version 4"):
        decode(other, LIMIT)


# --- the form that travels ---

FORMS = [
    (
        TrainRequest(3, {}, False, SESSION, "run"),
        '{"kind":"train","round_index":3,"evaluate":false,"session":{"run":"run","round_index":3,"nonce":"00ff",'
        '"invited":["a","b","c"],"threshold":3,"payload":""},"run":"run","keep":false}',
    ),
    (PhaseRequest("share", "00ff", {}), '{"kind":"phase","phase":"share","nonce":"00ff"}'),
    (
        ClientUpdate("b", 2, {}, 5, 0.5, Score({"acc": 2.0}, 7), {"clients": 0.25}),
        '{"kind":"update","client":"b","round_index":2,"examples":5,"loss":0.5,"score":[{"acc":2.0},7],'
        '"seconds":{"clients":0.25}}',
    ),
    (PhaseAnswer("a", "00ff", {}), '{"kind":"answer","client":"a","nonce":"00ff"}'),
    (Failure("a", "why"), '{"kind":"failure","client":"a","reason":"why"}'),
]


@pytest.mark.parametrize(("message", "form"), FORMS, ids=lambda value: type(value).__name__)
def test_header_is_a_form_that_no_renamed_attribute_changes(message, form):
    data = encode(message)
    length = int.from_bytes(data[:8], "little")
    filled = form.ljust(1024) if isinstance(message, ClientUpdate) else form
    assert json.loads(data[8 : 8 + length])["__metadata__"] == {"fedcollm": f"4\n{filled}"}


@pytest.mark.parametrize(
    "score", ['[{"acc":1.0},2,{"acc":true}]', '[{"acc":1.0},2,{"acc":1.5}]', '[{"acc":1.0},2,{},3]', '[{"acc":1.0}]']
)
def test_score_of_another_form_is_refused(score):
    data = encode(ClientUpdate("b", 2, {}, 5, 0.5, Score({"acc": 1.0}, 2), {}))
    odd = data.replace(b'[{\\"acc\\":1.0},2]', score.replace('"', '\\"').encode(), 1)
    assert odd != data
    length = len(odd) - len(data) + int.from_bytes(data[:8], "little")
    with pytest.raises(RefusalError, match="not a message of this protocol"):
        decode(length.to_bytes(8, "little") + odd[8:], LIMIT)


NUMBERS = {
    "examples": ('"examples":5', ["NaN", "Infinity", "1e400", "9" * 400, "9" * 5000, "true", "5.5", '"5"']),
    "loss": ('"loss":0.5', ["1e301", "NaN", "Infinity", "-Infinity", "1e400", "9" * 400, "9" * 5000, "true", '"5"']),
    "round": ('"round_index":2', ["NaN", "1e400", "9" * 400, "9" * 5000, "-" + "9" * 400, "true", "null"]),
    "seconds": ('"seconds":{}', ['{"a":NaN}', '{"a":1e400}', f'{{"a":{"9" * 400}}}', f'{{"{"a" * 101}":1.0}}', "[]"]),
    "score": ('"score":null', ['[{"a":NaN},1]', f'[{{"a":1.0}},{"9" * 400}]', f'[{{"a":1.0}},1,{{"a":{"9" * 400}}}]']),
    "depth": ('"score":null', ["[" * 100_000]),
}


@pytest.mark.parametrize("where", NUMBERS)
def test_number_that_no_program_holds_is_bad_input(where):
    plain, others = NUMBERS[where]
    header = '{"kind":"update","client":"b","round_index":2,"examples":5,"loss":0.5,"score":null,"seconds":{}}'
    assert isinstance(decode(file(header), LIMIT), ClientUpdate)
    key = plain.partition(":")[0]
    for other in others:
        with pytest.raises(RefusalError, match="not a message of this protocol"):
            decode(file(header.replace(plain, f"{key}:{other}")), 10**7)


def test_request_with_a_number_that_no_program_holds_is_bad_input():
    data = '{"kind":"train","round_index":1,"evaluate":true,"session":null,"run":"","keep":false}'
    assert isinstance(decode(file(data), LIMIT), TrainRequest)
    for number in ("NaN", "1e400", "9" * 400, "1" + "0" * 5000):
        with pytest.raises(RefusalError, match="not a message of this protocol"):
            decode(file(data.replace("1,", f"{number},", 1)), 10**7)


@pytest.mark.parametrize("cut", [1, 7, 8, 30, 150])
def test_truncated_message_is_refused(cut):
    data = encode(TrainRequest(3, ADAPTER))
    with pytest.raises(RefusalError, match="not a message of this protocol"):
        decode(data[:-cut], LIMIT)


def test_message_that_is_too_long_is_refused():
    data = encode(PhaseAnswer("a", "00", {"vector": bytes(1000)}))
    assert decode(data, len(data))
    with pytest.raises(RefusalError, match=f"a message of {len(data)} bytes, longer than the {len(data) - 1} allowed"):
        decode(data, len(data) - 1)


@pytest.mark.parametrize("tensor", [torch.zeros(2), torch.zeros(2, 2, dtype=torch.uint8)])
def test_items_that_are_not_bytes_are_refused(tensor):
    with pytest.raises(RefusalError, match="item v is not a string of bytes"):
        decode(file(GOOD, {"v": tensor}), LIMIT)


def session_of(**changes: object) -> dict[str, object]:
    session = {"run": "r", "round_index": 1, "nonce": "n", "invited": ["a"], "threshold": 3, "payload": ""}
    return {"kind": "train", "round_index": 1, "run": "r", "evaluate": True, "session": session | changes}


@pytest.mark.parametrize(
    "header",
    [
        {"kind": "finish", "round_index": int("9" * 4200), "run": "r"},
        {"kind": "finish", "round_index": -5, "run": "r"},
        {"kind": "train", "round_index": 2**40, "evaluate": True, "session": None, "run": "r"},
        session_of(invited=["a"] * 10_001),
        session_of(payload="p" * 1001),
        session_of(round_index=-1),
        {**GOOD, "client": "c" * 1001},
        {"kind": "failure", "client": "a", "reason": "r" * 10_001},
    ],
    ids=lambda header: str(header)[:60],
)
def test_head_with_more_than_any_message_needs_is_refused(header):
    with pytest.raises(RefusalError, match="not a message of this protocol"):
        decode(file(header), 10**6)


def raw(entries: str) -> bytes:
    """A file with these entries after its metadata."""
    metadata = {"fedcollm": f"{PROTOCOL_VERSION}\n{json.dumps(GOOD)}"}
    text = f'{{"__metadata__":{json.dumps(metadata)}{entries}}}'.encode()
    return len(text).to_bytes(8, "little") + text


EMPTY = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'


def test_number_and_names_of_tensors_are_bounded():
    entries = "".join(f',"{index:x}":{EMPTY}' for index in range(20_001))
    with pytest.raises(RefusalError, match=r"with 20001 tensors, more than the 20000 allowed"):
        decode(raw(entries), 10**7)
    with pytest.raises(RefusalError, match=r"name is longer than the 500"):
        decode(raw(f',"{"n" * 501}":{EMPTY}'), 10**7)
    with pytest.raises(RefusalError, match=r"a head of 8388610 bytes, longer than the 8388608 allowed"):
        decode((2**23 + 2).to_bytes(8, "little") + b" " * (2**23 + 2), 10**8)
    assert isinstance(decode(raw(f',"a":{EMPTY}'), 10**7), PhaseAnswer)


def test_name_that_occurs_twice_is_refused():
    with pytest.raises(RefusalError, match="a name occurs twice"):
        decode(raw(f',"a":{EMPTY},"a":{EMPTY}'), 10**7)
