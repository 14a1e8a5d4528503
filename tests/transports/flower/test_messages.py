"""Flower messages from hostile hands: parts that are missing, malformed, or named a million times."""

import os
from types import SimpleNamespace

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError
from flwr.supercore.task_identity import TaskIdentity

from fedcollm.errors import RefusalError
from fedcollm.transports.flower import messages as flower_messages
from fedcollm.transports.flower.messages import LostError, fetch, pack, request, send

LIMIT = 2**20


@pytest.fixture(autouse=True)
def identity(monkeypatch):
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def taken_apart(message: Message):
    """Head, tree, and parts by name."""
    parts, announced = {}, []

    def announce(head, tree):
        announced[:] = [head, tree]
        return SimpleNamespace(objects_to_push=sorted(_names(tree)), session_id="s")

    assert send(message, announce, lambda session: parts.__setitem__) == message.metadata.message_id
    return *announced, parts


def _names(tree):
    return {tree.object_id}.union(*map(_names, tree.children))


def fetched(head, tree, parts, limit=LIMIT) -> tuple[Message, bytes]:
    return fetch(head, tree, lambda run: parts.__getitem__, limit)


@pytest.mark.parametrize("data", [b"", b"x", bytes(3 * 2**18), os.urandom(1000)], ids=["empty", "x", "zeros", "random"])
def test_bytes_come_back(data):
    assert fetched(*taken_apart(request(data, 5, 60.0)))[1] == data


def test_long_bytes_come_in_parts_of_which_equal_ones_travel_once():
    data = bytes(12 * 2**20)
    head, tree, parts = taken_apart(request(data, 5, 60.0))
    assert sum(map(len, parts.values())) < 8 * 2**20
    assert fetched(head, tree, parts, 13 * 2**20)[1] == data


def test_only_parts_that_are_missing_are_sent():
    message = request(os.urandom(100), 5, 60.0)
    _, _, parts = taken_apart(message)
    (chunk,) = [name for name, content in parts.items() if content.startswith(b"ConfigRecord")]
    pushed = {}
    send(message, lambda head, tree: SimpleNamespace(objects_to_push=[chunk], session_id="s"),
         lambda session: pushed.__setitem__)  # fmt: skip
    assert list(pushed) == [chunk]


def test_answer_goes_back_to_the_sender():
    message, _ = fetched(*taken_apart(request(b"question", 5, 60.0)))
    reply, data = fetched(*taken_apart(Message(pack(b"answer"), reply_to=message)))
    assert data == b"answer"
    assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (5, 1)
    assert reply.metadata.reply_to_message_id == message.metadata.message_id


# --- hostile ones ---


def test_message_longer_than_the_limit_is_refused_before_it_is_whole():
    head, tree, parts = taken_apart(request(os.urandom(12 * 2**20), 5, 60.0))
    pulled = []

    def pull(name):
        pulled.append(name)
        return parts[name]

    with pytest.raises(RefusalError, match="longer than the 1048576 bytes allowed"):
        fetch(head, tree, lambda run: pull, LIMIT)
    assert len(pulled) < len(parts)


@pytest.mark.parametrize("times", [3, 10**4])
def test_part_that_stands_many_times_counts_as_often(times):
    """Else 4 MiB sent would be 4 TiB received."""
    record = ConfigRecord({"fedcollm": bytes(2**19)})
    message = Message(RecordDict({str(i): record for i in range(times)}), 5, "train", ttl=60.0)
    head, tree, parts = taken_apart(message)
    assert sum(map(len, parts.values())) < 2 * 2**20
    with pytest.raises(RefusalError, match="longer than the 1572863 bytes allowed"):
        fetched(head, tree, parts, 3 * 2**19 - 1)


def test_parts_of_another_kind_are_refused_before_they_are_put_together():
    """An array may name one part a million times."""
    content = RecordDict({"0": ArrayRecord({"fedcollm": Array("uint8", (1,), "safetensors", b"x")})})
    with pytest.raises(RefusalError, match=r"parts of another kind \(Array, ArrayChunk, ArrayRecord\)"):
        fetched(*taken_apart(Message(content, 5, "train", ttl=60.0)))


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00", b"Array  5", b"Nothing  0\x00", b"Array  2\x00{}", b"ArrayChunk 00 0\x00", b"\xff\xfe \x00",
     b"ArrayRecord  2\x00{}", b"Message  4\x00\xff\xff\xff\xff"],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("kind", [b"Message", b"RecordDict", b"ConfigRecord"], ids=repr)
def test_malformed_part_is_refused(content, kind):
    head, tree, parts = taken_apart(request(b"data", 5, 60.0))
    (name,) = [name for name, part in parts.items() if part.startswith(kind)]
    with pytest.raises(RefusalError):
        fetched(head, tree, parts | {name: content})


def test_part_that_does_not_come_is_a_lost_message():
    head, tree, _ = taken_apart(request(b"data", 5, 60.0))

    def pull(name):
        raise ObjectPullError(name, "gone")

    with pytest.raises(LostError):
        fetch(head, tree, lambda run: pull, LIMIT)


@pytest.mark.parametrize(("left", "waits"), [(7.5, 7.5), (1e6, 120.0), (-1.0, 0.0)])
def test_parts_that_were_announced_are_waited_for_until_the_deadline_only(monkeypatch, left, waits):
    asked = list[float]()

    def pull_objects(names, pull, *, max_time, **_):
        asked.append(max_time)
        raise ObjectPullError(names[0], "not there")

    monkeypatch.setattr(flower_messages, "pull_objects", pull_objects)
    head, tree, parts = taken_apart(request(b"x", 5, 60.0))
    with pytest.raises(LostError):
        fetch(head, tree, lambda run: parts.__getitem__, LIMIT, left)
    assert asked == [waits]


def test_part_that_is_not_taken_is_a_lost_message():
    def push(name, content):
        raise ObjectPushError(name, "s", "no space")

    def announce(head, tree):
        return SimpleNamespace(objects_to_push=sorted(_names(tree)), session_id="s")

    with pytest.raises(LostError):
        send(request(b"data", 5, 60.0), announce, lambda session: push)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"1": ConfigRecord({"fedcollm": b"x"})}),
        RecordDict({"0": ConfigRecord({"fedcollm": 1})}),
        RecordDict({"0": ConfigRecord({"other": b"x"})}),
        RecordDict({"0": ConfigRecord({"fedcollm": b"x", "other": b"x"})}),
        RecordDict({**pack(b"x"), "more": ConfigRecord()}),
    ],
)
def test_content_that_pack_does_not_make_is_refused(content):
    with pytest.raises(RefusalError, match="not made by fedcollm"):
        fetched(*taken_apart(Message(content, 5, "train", ttl=60.0)))
