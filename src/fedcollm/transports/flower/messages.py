"""Bytes as Flower messages: what the server and the nodes have in common to send and to receive.

A Flower message carries one string of bytes, which `wire` encodes and decodes.
"""

from collections.abc import Callable
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
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

_NAME, _TYPE, _PART_BYTES = "fedcollm", "train", 4 * 2**20
_KINDS = {kind.__qualname__ for kind in (Message, RecordDict, ConfigRecord)}
#: Seconds to wait for the parts of an announced message, unless there is a deadline before.
LONGEST_PULL = 120.0


class LostError(Exception):
    """A message did not arrive whole."""


def pack(data: bytes) -> RecordDict:
    """Return bytes as the content of a Flower message: one record per part of at most 4 MiB.

    Flower sends each record in a request of its own.
    """
    starts = range(0, max(len(data), 1), _PART_BYTES)
    return RecordDict({str(i): ConfigRecord({_NAME: data[s : s + _PART_BYTES]}) for i, s in enumerate(starts)})


def unpack(message: Message, limit_bytes: int) -> bytes:
    """Return the bytes of a Flower message: the inverse of `pack`.

    Args:
        message: a message from a party that may be faulty or hostile.
        limit_bytes: largest number of bytes to accept. One record that was sent once may occur many times.

    Raises:
        RefusalError: the content was not made by `pack`, or is longer than the limit.
    """
    content = message.content if message.has_content() else RecordDict()
    records = [content.get(str(i)) for i in range(len(content))]
    parts = [record[_NAME] for record in records if isinstance(record, ConfigRecord) and list(record) == [_NAME]]
    strings = [part for part in parts if isinstance(part, bytes)]
    if not strings or len(strings) < len(records):
        raise RefusalError("a Flower message that was not made by fedcollm")
    if sum(map(len, strings)) > limit_bytes:
        raise RefusalError(f"a message longer than the {limit_bytes} bytes allowed")
    return b"".join(strings)


def request(data: bytes, node: int, seconds: float) -> Message:
    """Return a message to a node.

    Args:
        data: the content.
        node: Flower's number of the node.
        seconds: how long the node has to fetch the message.
    """
    return Message(pack(data), node, _TYPE, ttl=seconds)


def send(
    message: Message, announce: Callable[[Any, Any], Any], push: Callable[[str], Callable[[str, bytes], None]]
) -> str:
    """Announce a message, then send those of its parts that the SuperLink does not have yet.

    Args:
        message: the message, with its content.
        announce: sends the message without its content, and the tree of its parts. It returns Flower's response, with
            `objects_to_push` and `session_id`.
        push: returns, for a `session_id`, a function that sends one part, given its name and its bytes.

    Returns:
        The message's id.

    Raises:
        LostError: the SuperLink did not accept a part.
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


def fetch(
    head: Any, tree: Any, pull: Callable[[int], Callable[[str], bytes]], limit_bytes: int, seconds: float = LONGEST_PULL
) -> tuple[Message, bytes]:
    """Fetch the parts of an announced message; return the message and its bytes.

    Args:
        head: protobuf message without its content, as Flower's response to a pull request holds it.
        tree: protobuf tree with the names of the message's parts.
        pull: returns, for a run's number, a function that fetches one part, given its name.
        limit_bytes: size of the longest message to fetch.
        seconds: how long to wait for the parts at most.

    Raises:
        LostError: a part did not come.
        RefusalError: the message is longer than the limit, or its content was not made by `pack`.
    """
    try:
        metadata = message_from_proto(head).metadata
    except Exception as error:  # Flower's code may raise anything on a malformed head
        raise RefusalError(f"a malformed Flower message ({type(error).__name__})") from error
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
        contents = pull_objects(
            names, limited, max_time=max(min(seconds, LONGEST_PULL), 0.0), initial_backoff=0.05, backoff_cap=0.5
        )
    except ObjectPullError as error:
        raise LostError(str(error)) from error
    message = _inflated(metadata.message_id, contents)
    message.metadata.__dict__["_message_id"] = metadata.message_id
    return message, unpack(message, limit_bytes)


def _inflated(name: str, contents: dict[str, bytes]) -> Message:
    """Return a message, given its id and its parts by name.

    Parts of kinds that `pack` does not make are refused, because some of them could grow without bounds.

    Raises:
        RefusalError: a part is malformed, or of another kind.
    """
    try:
        kinds = {get_object_head_values_from_object_content(content)[0] for content in contents.values()}
        if not kinds <= _KINDS:
            raise RefusalError(
                f"a Flower message with parts of another kind ({', '.join(sorted(kinds - _KINDS))[:60]})"
            )
        message = inflate_object_from_contents(name, contents)
    except RefusalError:
        raise
    except Exception as error:  # Flower's code may raise anything on malformed parts
        raise RefusalError(f"a malformed Flower message ({type(error).__name__})") from error
    if not isinstance(message, Message):
        raise RefusalError("something that is not a Flower message")
    return message
