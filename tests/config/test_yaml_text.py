"""YAML as people write it: what is read as what, and what is refused."""

import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedcollm.config import FormatConfig
from fedcollm.config.loading import load_config, parse_settings
from fedcollm.config.yaml_text import read_yaml, write_yaml
from fedcollm.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[yes, no, on, Off, y, n]", ["yes", "no", "on", "Off", "y", "n"]),
        ("[true, False, ~, null]", [True, False, None, None]),
        ("[1e-3, 1E6, .5, 1., -2.5e+1, +3]", [0.001, 1000000.0, 0.5, 1.0, -25.0, 3]),
        ("[12:30, 2024-01-01, 1_000, 0b1]", ["12:30", "2024-01-01", "1_000", "0b1"]),
        ("[010, 0x1f, 0o17, -0]", [10, 31, 15, 0]),
        ("[.inf, -.INF]", [math.inf, -math.inf]),
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}", {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}),
        ("a: &x [1]\nb: [*x, *x]", {"a": [1], "b": [[1], [1]]}),
        ("", None),
        ("# nothing", None),
    ],
)
def test_values(text: str, value: Any):
    assert read_yaml(text) == value


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: {c: 1}\na: 2", "line 3: the key 'a' stands twice in one section, first on line 1"),
        ("client:\n  epochs: 1\n  'epochs': 2", "line 3: the key 'epochs' stands twice"),
        ("a: {<<: {b: 1}, <<: {b: 2}}", "'<<' stands twice"),
        (BOMB, "aliases .* stand for more than 100000 values"),
        ("a: &x [*x]", "line 1: an alias .* within its own anchor"),
        ("[" * 5000, "nested too deeply"),
        ("a: [", "line 1"),
        ("{[1]: 2}", "unhashable"),
        ("!!python/object/apply:os.system [ls]", "python"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a: \x07", "special characters are not allowed"),
        ("!!bool maybe", "does not fit its tag .*KeyError 'maybe'"),
        ("!!timestamp x", "does not fit its tag .*AttributeError"),
        ("!!binary é", "base64"),
        ("!!int x", "invalid literal for int"),
        ("a: !!float", "could not convert"),
    ],
)
def test_refused(text: str, reason: str):
    with pytest.raises(ValueError, match=reason):
        read_yaml(text)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8"))
    | st.from_regex(r"[-+]?[0-9._:oxe-]{1,8}", fullmatch=True) | st.sampled_from(["yes", "No", "~", "<<", "=", ".nan"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@given(plain)
def test_what_is_written_is_read_again_by_either_version(value: Any):
    text = write_yaml(value)
    assert read_yaml(text) == yaml.safe_load(text) == value


def test_choices_are_texts():
    load = parse_settings(
        ["task.format={prompt: '{a}', answer: b, choices: [yes, no, 3]}", "client.learning_rate=1e-3"]
    )
    config = load_config({}, **load)
    assert config.task.format is not None
    assert (config.task.format.choices, config.client.learning_rate) == (["yes", "no", "3"], 0.001)
    with pytest.raises(UserError, match=r"True is no text\. Put each choice in quotes"):
        load_config({}, **parse_settings(["task.format={prompt: '{a}', answer: b, choices: [true, false]}"]))
    assert FormatConfig(prompt="{a}", answer="b", choices="column").choices == "column"


def test_words_for_a_switch_where_nothing_else_can_be():
    words = ["federation.secure_aggregation=yes", "log_steps=on", "slm.adapter.options={use_rslora: no}"]
    config = load_config({}, **parse_settings(words))
    assert config.federation.secure_aggregation.enabled
    assert config.log_steps
    assert config.slm.adapter.options == {"use_rslora": False}


def test_the_last_setting_of_a_key_wins():
    assert parse_settings(["a.b=1", "a.b=2"]) == {"a.b": 2}
    with pytest.raises(UserError, match="'x' stands twice"):
        parse_settings(["a={x: 1, x: 2}"])
