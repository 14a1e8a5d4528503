import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.conftest import PATIENCE_SECONDS

from fedcollm import report
from fedcollm.config import RunConfig
from fedcollm.config.words import facts_in_words, settings_in_words
from fedcollm.data.audit.fingerprints import SCHEME
from fedcollm.data.audit.profiles import Profile
from fedcollm.errors import UserError
from fedcollm.messages import RoundRecord
from fedcollm.report import write_report
from fedcollm.report.content import settings
from fedcollm.runs.directory import CONFUSION, DATA, write_json

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--enable-logging=stderr",
    "--v=0",
    "--virtual-time-budget=10000",
    "--window-size=1280,2000",
)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH")


class Page(HTMLParser):
    """What a test asks of a page.

    Attributes:
        ids: of all elements.
        loads: values of attributes that make a browser load something.
        marks: id of a plot to what is drawn in it, but for its legend: `svg`, `line`, `point`, `image`.
        text: all text outside of scripts and styles.
    """

    def __init__(self, source: str):
        super().__init__()
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.marks: dict[str, Counter[str]] = {}
        self.text = ""
        self._open: list[tuple[str, str, list[str]]] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids += [values["id"]] if "id" in values else []
        loading = ("src", "href", "xlink:href", "srcset", "data", "action", "poster")
        self.loads += [values[name] for name in loading if name in values]
        classes = values.get("class", "").split()
        plot = next((name for _, name, _ in self._open if name.startswith("plot-")), None)
        if plot and not any("legend" in outer for _, _, outer in self._open):
            kinds = {"svg": "main-svg" in classes, "line": "js-line" in classes, "point": "point" in classes}
            drawn = [kind for kind, is_one in (kinds | {"image": tag == "image"}).items() if is_one]
            self.marks.setdefault(plot, Counter()).update(drawn)
        if tag not in VOID:
            self._open.append((tag, values.get("id", ""), classes))

    def handle_endtag(self, tag: str) -> None:
        self.text += " " if tag in ("td", "th") else ""
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & {tag for tag, _, _ in self._open}:
            self.text += data


def browse(page: Path) -> tuple[Page, list[str]]:
    """Open a page in a real browser: the page as its scripts left it, and all that the console says."""
    assert BROWSER
    profile = page.with_suffix(".profile")
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True)
    return Page(result.stdout), [line for line in result.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture
def whole(make_run, make_record) -> Path:
    """One run with everything."""
    records = [make_record(0, 0.1, 0.3), make_record(1, 0.6, 0.7), make_record(2, 0.5, 0.8)]
    run = make_run("whole", records, name="tiny", federation={"rounds": 2})
    labels, bins, sketch = {"cat": 3, "dog": 1, "bird": 4}, [0, 6, 2, *[0] * 9], [8, *[0] * 63]
    profile = Profile(scheme=SCHEME, kind="text", clients=2, examples=8, labels=labels, lengths=bins, sketch=sketch)
    (run / "profile.json").write_text(profile.text())
    return run


def test_public_names():
    assert report.__all__ == ["Summary", "find_runs", "summary", "write_report"]


def test_page_of_a_control_says_what_it_is(make_run, tmp_path):
    config = {"control": {"features": "ngrams"}, "server": {"epochs": 0}, "federation": {"rounds": 1}}
    records = [RoundRecord(0), RoundRecord(1, {"control": 0.75}, bytes_up=8_564_736, bytes_down=8_564_736)]
    run = make_run("control", records, bare=True, name="control", **config)
    write_json(run, CONFUSION, {"control": [["cat", "cat", 3], ["dog", "cat", 1]]})
    write_json(run, DATA, {"clients": {}, "public": {}, "unlabelled": 0, "test": 4})
    page = Page(write_report([run], tmp_path / "page.html").read_text(encoding="utf-8"))
    text = " ".join(page.text.split())
    for words in (
        "After 1 round, the control without training reached 75.0% accuracy.",
        "Scored on 4 test examples",
        "8.56 MB",
        "Nothing is trained. The server asks every client once",
        "ridge regression on hashed character n-grams",
        "Confusion, control",
    ):
        assert words in text, words
    for words in ("each client fine-tunes", "optimizer", "Bytes sent so far"):
        assert words not in text.partition("Configuration and environment")[0], words


def test_page_says_it_all_and_loads_nothing(whole, tmp_path):
    file = write_report([whole], tmp_path / "new" / "page.html")
    assert file == tmp_path / "new" / "page.html"
    page = Page(file.read_text(encoding="utf-8"))
    assert [load for load in page.loads if not load.startswith(("#", "data:"))] == []
    assert len(page.ids) == len(set(page.ids))
    text = " ".join(page.text.split())
    for words in (
        "After 2 rounds, the clients’ small model went from 10.0% to 50.0% accuracy, "
        "and the server’s large model went from 30.0% to 80.0%.",
        "Scored on 100 test examples",
        "best 60.0% in round 1",
        "by each client: 0.5% of the small model’s parameters",
        "clients 4.0 s, distillation 6.0 s, evaluation 3.0 s",
        "7 duplicates removed",
        "Client 0, Client 1",
        "Large model smollm2-135m",
        "a note on the data",
        "8 examples of 2 clients, as sums over the clients",
        "Lengths of the federation, in characters",
        "16 to under 32 6 75.0%",
        "arXiv 2411.11707",
        "learning_rate: 0.001",
        "versions.torch 2.13.0",
    ):
        assert words in text, words


def test_ablations_are_said(make_run, make_record, tmp_path):
    values = {
        "client": {"proximal": 0.01},
        "server": {"layer_transfer": 0.5, "distillation": {"divergence": "jensen_shannon", "warmup_rounds": 4}},
        "federation": {"server_optimizer": {"kind": "fedadam", "learning_rate": 0.02}},
    }
    run = make_run("run", [make_record(0, 0.1, 0.3), make_record(1, 0.6, 0.7)], **values)
    text = " ".join(Page(write_report([run], tmp_path / "page.html").read_text(encoding="utf-8")).text.split())
    _, separator, otherwise = text.partition("Changes to the method described above: ")
    assert separator
    for key_word in ("Jensen–Shannon", "first 4 rounds", "50%", "FedAdam", "0.02", "FedProx at the clients, μ = 0.01"):
        assert key_word in otherwise, key_word


def test_settings_are_facts_and_then_ablations():
    plain, changed = RunConfig(), RunConfig.model_validate({"client": {"proximal": 0.5}})
    assert "Changes to the method described above" not in settings(plain)
    assert all(fact in settings(plain) for fact in facts_in_words(plain))
    assert all(words in settings(changed) for words in (*facts_in_words(changed), *settings_in_words(changed)))


def test_folder_as_output_gets_report_html(whole):
    assert write_report([whole], whole) == whole / "report.html"


def test_page_is_the_same_every_time(whole, tmp_path):
    first, second = (write_report([whole], tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_nothing_from_a_run_becomes_markup(make_run, make_record, tmp_path):
    evil = "</script><script>alert(1)</script>"
    run = make_run("run", [make_record(0, 0.1)], slm={"source": evil})
    page = write_report([run], tmp_path / "page.html").read_text()
    assert evil not in page
    assert page.count("</script>") == 3


def test_interrupted_runs(make_run, make_record, tmp_path):
    started = make_run("runs/started", [], bare=True)
    with pytest.raises(UserError, match="no finished round"):
        write_report([started], tmp_path / "page.html")
    make_run("runs/first", [make_record(0, 0.1, 0.3)], bare=True)
    text = Page(write_report([tmp_path / "runs"], tmp_path / "page.html").read_text()).text
    assert "Before any training, the clients’ small model is at 10.0% accuracy" in " ".join(text.split())
    assert "Left out because no round is finished" in text
    make_run("third", [make_record(0, None), make_record(1, None), make_record(3, None)], bare=True)
    text = Page(write_report([tmp_path / "third"], tmp_path / "page.html").read_text()).text
    assert "3 of 5 rounds finished, none of them scored." in text


def test_nothing_to_report_on(tmp_path):
    with pytest.raises(UserError, match="No run directory given"):
        write_report([], tmp_path / "page.html")
    with pytest.raises(UserError, match="holds no run"):
        write_report([tmp_path], tmp_path / "page.html")


@needs_browser
def test_browser_draws_every_plot(whole, tmp_path):
    page, console = browse(write_report([whole], tmp_path / "page.html"))
    assert console == []
    drawn = {plot: {kind: n for kind, n in marks.items() if kind != "svg"} for plot, marks in page.marks.items()}
    assert all(marks["svg"] >= 1 for marks in page.marks.values())
    assert drawn == {
        "plot-accuracy": {"line": 3, "point": 3 + 3 + 2},
        "plot-gains": {"point": 6},
        "plot-timeline": {"point": 6},
        "plot-confusion-slm": {"image": 1},
        "plot-confusion-llm": {"image": 1},
        "plot-losses": {"line": 4, "point": 8},
        "plot-time": {"point": 9},
        "plot-bytes": {"line": 2, "point": 4},
        "plot-data": {"point": 9},
        "plot-profile-labels": {"point": 3},
        "plot-profile-lengths": {"point": 12},
    }


@needs_browser
def test_browser_draws_a_comparison(make_run, make_record, tmp_path):
    for seed in (0, 1):
        for name, llm in (("fedcollm", 0.7), ("fedavg", None), ("<b>&x</b>", None)):
            records = [make_record(0, 0.1, llm), make_record(1, 0.5 + seed / 100, llm)]
            make_run(f"all/{name.replace('/', '')}/seed-{seed}", records, name=name.replace("/", ""), seed=seed)
    page, console = browse(write_report([tmp_path / "all"], tmp_path / "page.html"))
    assert console == []
    assert page.marks["plot-final"] == Counter(
        svg=page.marks["plot-final"]["svg"], point=4 + 8
    )  # means, and a dot per seed
    assert page.marks["plot-accuracy"]["line"] == 5  # without bands, for which there are too few seeds
    assert "mean over 2 seeds" in page.text


@needs_browser
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("window.Plotly.react(", "window.Plotly.missing("),
        ("</main>", '</main><img src="https://example.org/x.png">'),
    ],
    ids=["broken script", "external image"],
)
def test_browser_notices_what_is_wrong(whole, tmp_path, old, new):
    """The control: what the tests above look for can be absent."""
    file = write_report([whole], tmp_path / "page.html")
    source = file.read_text(encoding="utf-8")
    assert old in source
    file.write_text(source.replace(old, new), encoding="utf-8")
    page, console = browse(file)
    assert console
    assert ("missing" in new) == (not page.marks)
