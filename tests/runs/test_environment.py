from pathlib import Path

import pytest

from fedcollm.errors import UserError
from fedcollm.runs.directory import read_json, recorded_bases
from fedcollm.runs.environment import record

BEGAN = {"versions": {"torch": "2.12", "peft": "0.21"}, "threads": 1, "healed": {"slm": "a"}}


def test_what_changes_on_a_resume_is_added_to_what_the_run_began_with(tmp_path: Path):
    (tmp_path / "rounds.jsonl").write_text('{"round": 0}\n{"round": 1}\n')
    record(tmp_path, BEGAN)
    record(tmp_path, BEGAN)
    assert read_json(tmp_path, "environment.json") == BEGAN
    newer = BEGAN | {"versions": {"torch": "2.13", "peft": "0.21"}, "threads": 4}
    record(tmp_path, newer)
    record(tmp_path, newer)
    (tmp_path / "rounds.jsonl").write_text('{"round": 2}\n')
    record(tmp_path, BEGAN | {"gpu": "H200"})
    assert read_json(tmp_path, "environment.json") == BEGAN | {
        "changes": {
            "1, after round 1": {"versions.torch": "2.13", "threads": 4},
            "2, after round 2": {"versions.torch": "2.12", "threads": 1, "gpu": "H200"},
        }
    }
    assert recorded_bases(tmp_path) == {"slm": "a"}


def test_a_damaged_record_is_not_overwritten(tmp_path: Path):
    (tmp_path / "environment.json").write_text('{"changes": 3}')
    with pytest.raises(UserError, match=r"environment\.json"):
        record(tmp_path, BEGAN)
