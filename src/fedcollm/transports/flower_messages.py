"""Bytes as Flower messages, in both directions and at both ends.

Flower's messages hold one array of bytes, made and read by `wire`; Flower cuts it into chunks for the journey.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_body,
    get_object_head_values_from_object_content,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)

from fedcollm.errors import RefusalError

_NAME, _FORMAT, _TYPE = "fedcollm", "safetensors", "train"
_LONGEST_PULL = 120.0  # seconds for the parts of an announced message to come


class LostError(Exception):
    """A message that did not arrive whole."""


def pack(data: bytes) -> RecordDict:
    """Bytes as a Flower message's content."""
    array = Array(dtype="uint8", shape=(len(data),), stype=_FORMAT, data=data)
    return RecordDict({_NAME: ArrayRecord({_NAME: array})})


def unpack(message: Message) -> bytes:
    """Inverse of `pack`.

    Raises:
        RefusalError: anything else than what `pack` makes.
    """
    content = message.content if message.has_content() else {}
    record = content[_NAME] if list(content) == [_NAME] else None
    array = record[_NAME] if isinstance(record, ArrayRecord) and list(record) == [_NAME] else None
    if array is None or array.stype != _FORMAT:
        raise RefusalError("a Flower message that was not made by fedcollm")
    return array.data


def request(data: bytes, node: int, seconds: float) -> Message:
    """A message to a node, which it must fetch within so many seconds."""
    return Message(pack(data), node, _TYPE, ttl=seconds)


def send(
    message: Message, announce: Callable[[Any, Any], Any], push: Callable[[str], Callable[[str, bytes], None]]
) -> str:
    """Announce a message, then send the parts of it that are not there yet.

    Args:
        message: with its content.
        announce: takes its head and the tree of its parts; returns a response with `objects_to_push` and `session_id`.
        push: session to what takes a part's name and bytes.

    Returns:
        The message's id.

    Raises:
        LostError: a part was not taken.
    """
    with no_object_id_recompute():
        message.metadata.__dict__["_message_id"] = name = message.object_id
        response = announce(message_to_proto(remove_content_from_message(message)), get_object_tree(message))
        parts, missing = get_all_nested_objects(message), set(response.objects_to_push)
        try:
            push_objects(parts, push(response.session_id), object_ids_to_push=missing)
        except ObjectPushError as error:
            raise LostError(str(error)) from error
    return name


def fetch(head: Any, tree: Any, pull: Callable[[int], Callable[[str], bytes]], limit_bytes: int) -> Message:
    """A whole message from its head and the tree of its parts, as a pull request gives them.

    Args:
        head: protobuf message without content.
        tree: names of its parts.
        pull: run to what takes a part's name and returns its bytes.
        limit_bytes: the longest message to fetch.

    Raises:
        LostError: a part does not come.
        RefusalError: it is longer than the limit, or not a message.
    """
    metadata = message_from_proto(head).metadata
    part, left = pull(metadata.run_id), limit_bytes

    def limited(name: str) -> bytes:
        nonlocal left
        data = part(name)
        left -= len(data)
        if left < 0:
            raise RefusalError(f"a message longer than the {limit_bytes} bytes allowed")
        return data

    names = list(dict.fromkeys(tree.object_id for tree in iterate_object_tree(tree)))
    try:
        contents = pull_objects(names, limited, max_time=_LONGEST_PULL, initial_backoff=0.05, backoff_cap=0.5)
    except ObjectPullError as error:
        raise LostError(str(error)) from error
    try:
        longest = _whole_bytes(contents)
        message = inflate_object_from_contents(metadata.message_id, contents) if longest <= limit_bytes else None
    except Exception as error:  # whatever Flower's code makes of parts that nobody has looked at before
        raise RefusalError(f"a malformed Flower message ({type(error).__name__})") from error
    if longest > limit_bytes:
        raise RefusalError(f"a message longer than the {limit_bytes} bytes allowed")
    if not isinstance(message, Message):
        raise RefusalError("something that is not a Flower message")
    message.metadata.__dict__["_message_id"] = metadata.message_id
    return message


def _whole_bytes(contents: Mapping[str, bytes]) -> int:
    """Bytes that all arrays have once they are put together: an array may name one part many times."""
    total = 0
    for content in contents.values():
        kind, children, _ = get_object_head_values_from_object_content(content)
        if kind == Array.__qualname__:
            places = json.loads(get_object_body(content, Array))["arraychunk_ids"]
            total += sum(len(contents[children[place]]) for place in places)
    return total
