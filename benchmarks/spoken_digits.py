"""A task of six speakers who say digits, for a pair of Whisper models that write down what they hear.

    python -m benchmarks.spoken_digits RECORDINGS LLM OUT [--slm SLM] [--layers 0,1,4,5] [--language en]
    fedcollm compare OUT/spoken_digits.yaml --methods standalone,fedavg,fedavg_ce,fedcollm,centralized,centralized_llm

RECORDINGS is the zip file of the free spoken digit data set, whose members are named DIGIT_SPEAKER_INDEX.wav. LLM and
SLM are directories of Whisper models with one vocabulary; the SLM is by default the LLM, cut to some of its layers.
Writes the recordings, OUT/train.csv, OUT/test.csv (the official split: recordings 0 to 4 of each speaker and digit) and
OUT/spoken_digits.yaml, in which each speaker is a client, and a transcript is the digit as a word.
"""

import argparse
import csv
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

#: The digits as words.
WORDS: Sequence[str] = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

#: Recordings below this index are for the test.
FIRST_FOR_TRAINING = 5

CONFIGURATION = """\
name: spoken_digits
task:
  name: custom
  path: {path}
  clients: 6
  private_size: 20
  public_size: 60
  unlabelled_size: 0
  test_size: 100
  partition: {{kind: natural}}
  format: {{audio: file, transcript: words, group: speaker, longest_seconds: 1, language: {language}}}
llm: {{source: {llm}, dtype: float32, adapter: {{rank: 8}}}}
slm: {{source: {slm}, layers: {layers}, heal: null, dtype: float32, adapter: {{rank: 8}}}}
client: {{learning_rate: 1.0e-3, batch_size: 8, max_grad_norm: 1.0}}
server: {{learning_rate: 1.0e-3, batch_size: 8, max_grad_norm: 1.0}}
federation: {{rounds: 3}}
evaluation: {{clients: never, every: 3, batch_size: 50}}
"""


def unpack(recordings: Path, out: Path) -> None:
    """Write the recordings and the tables train.csv and test.csv."""
    (out / "recordings").mkdir(parents=True, exist_ok=True)
    rows: dict[bool, list[tuple[str, str, str]]] = {False: [], True: []}
    with zipfile.ZipFile(recordings) as archive:
        for name in sorted(name for name in archive.namelist() if name.endswith(".wav")):
            file = f"recordings/{Path(name).name}"
            digit, speaker, index = Path(name).stem.split("_")
            (out / file).write_bytes(archive.read(name))
            rows[int(index) < FIRST_FOR_TRAINING].append((file, WORDS[int(digit)], speaker))
    for part, test in (("train", False), ("test", True)):
        with (out / f"{part}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("file", "words", "speaker"), *rows[test]])


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the recordings, the tables and the configuration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("recordings", "llm", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--slm", type=Path)
    parser.add_argument("--layers", default="")
    parser.add_argument("--language", default="null")
    given = parser.parse_args(arguments)
    unpack(given.recordings, given.out)
    llm, slm, path = (json.dumps(str(place.resolve())) for place in (given.llm, given.slm or given.llm, given.out))
    layers = f"[{given.layers}]" if given.layers else "null"
    text = CONFIGURATION.format(path=path, llm=llm, slm=slm, layers=layers, language=given.language)
    (given.out / "spoken_digits.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
