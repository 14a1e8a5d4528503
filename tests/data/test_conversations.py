"""Columns of messages: OpenAI's form and ShareGPT's, and what is said of conversations that can't be used."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from fedcollm.config import FormatConfig
from fedcollm.data.conversations import Conversation, conversation
from fedcollm.data.files import load_custom
from fedcollm.errors import UserError

ASK = {"role": "user", "content": "Fever?"}
SAY = {"role": "assistant", "content": " Rest,  please. "}
MESSAGES = FormatConfig(messages="messages")


def lines(path: Path, *talks: Any) -> Path:
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "talk",
    [
        [ASK, SAY],
        [{"role": "system", "content": ""}, ASK, SAY],
        json.dumps([ASK, SAY]),
        {"messages": [ASK, SAY]},
        [{"from": "human", "value": "Fever?"}, {"from": "gpt", "value": "Rest,  please."}],
        [
            {**ASK, "tool_calls": None, "content": [{"type": "text", "text": "Fe"}, {"type": "text", "text": "ver?"}]},
            SAY,
        ],
    ],
)
def test_forms_of_a_conversation(talk):
    assert conversation(talk, "here") == Conversation((("user", "Fever?"),), "Rest,  please.")


def test_conversations_become_examples_with_turns(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    path = lines(tmp_path / "x.jsonl", [system, ASK, SAY, {"role": "user", "content": "And now?"}, SAY], [ASK, SAY])
    first, second = load_custom(path, MESSAGES).train
    assert first.turns == (
        ("system", "Be brief."),
        ("user", "Fever?"),
        ("assistant", " Rest,  please. "),
        ("user", "And now?"),
    )
    assert first.prompt == "Be brief.\nFever?\n Rest,  please. \nAnd now?"
    assert (first.choices, first.answer, first.labels) == (("Rest,  please.",), 0, ("Rest,  please.",))
    assert second.turns == (("user", "Fever?"),)
    table = pa.Table.from_pylist([{"messages": [ASK, SAY], "id": 7}])
    parquet.write_table(table, tmp_path / "x.parquet")
    (third,) = load_custom(tmp_path / "x.parquet", MESSAGES).train
    assert (third.id, third.turns, third.choices) == ("7", second.turns, second.choices)


def test_conversations_without_an_answer_are_left_out_on_request(tmp_path):
    path = lines(tmp_path / "x.jsonl", [ASK, SAY], [ASK], [ASK, {"role": "assistant", "content": " "}])
    with pytest.raises(UserError, match=r"line 2: the answer .* is empty\. .*skip_unanswered"):
        load_custom(path, MESSAGES)
    pool = load_custom(path, MESSAGES.model_copy(update={"skip_unanswered": True}))
    assert len(pool.train) == 1
    assert pool.notes[0].startswith("x.jsonl: 2 of 3 rows have no answer")


@pytest.mark.parametrize(
    ("talk", "message"),
    [
        ("hello", "here holds no list of messages"),
        (7, "here holds no list of messages"),
        (["hello"], "here, message 1: 'hello' is no message"),
        ([SAY], "nothing before the answer"),
        ([], "nothing before the answer"),
        ([{"role": "tool", "content": "x"}, SAY], "message 1: the role 'tool' is unknown"),
        ([{"content": "x"}, SAY], "the role None is unknown"),
        ([ASK, {**SAY, "tool_calls": [{"id": "1"}]}], "message 2: it has tool_calls"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, SAY], "a part of type 'image_url'"),
        ([{"role": "user", "content": {"a": 1}}, SAY], "message 1: it holds {'a': 1}"),
        ([{"role": "user", "content": ""}, SAY], "message 1: the message of the user is empty"),
    ],
)
def test_conversations_that_cannot_be_used(talk, message):
    with pytest.raises(UserError, match=message):
        conversation(talk, "here")
