"""What a page unpacks in the browser, and how small a page stays."""

import base64
import gzip
import io
from pathlib import Path

from PIL import Image
from plotly.offline import get_plotlyjs_version

from fedcollm.modalities.exhibits import Answer, Exhibit, to_json
from fedcollm.report import bundle, write_report
from fedcollm.report.html import LARGEST
from fedcollm.runs.directory import EXHIBITS, write_json


def test_script_is_of_the_version_that_the_figures_are_made_for():
    assert bundle.version() == get_plotlyjs_version()
    content = gzip.decompress(base64.b64decode(bundle.script()))
    assert content.startswith(b"/**")
    assert b"</script" not in content
    assert (Path(bundle.__file__).parent / "plotly-cartesian.LICENSE").read_text().startswith("MIT License")


def test_packed_text_is_the_same_every_time():
    assert bundle.packed("é") == bundle.packed("é")
    assert gzip.decompress(base64.b64decode(bundle.packed("é"))).decode() == "é"


def noise(kilobytes: int, seed: int) -> bytes:
    """A picture that can't be compressed."""
    file = io.BytesIO()
    size = 1000, kilobytes
    pixels = bytes((seed + i * i * 7 + (i >> 3) * 31) * 2654435761 >> 13 & 255 for i in range(size[0] * size[1]))
    Image.frombytes("L", size, pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


def test_pages_stay_below_one_megabyte_without_some_of_many_pictures(make_run, make_record, tmp_path):
    run = make_run("run", [make_record(0, 0.1, 0.3), make_record(1, 0.6, 0.7)])
    small = write_report([run], tmp_path / "page.html").stat().st_size
    pictures = [Exhibit(str(i), "", "a", noise(100, i), answers={"slm": Answer("a", True)}) for i in range(4)]
    write_json(run, EXHIBITS, to_json(pictures))
    page = write_report([run], tmp_path / "page.html").read_text(encoding="utf-8")
    assert small < 800_000
    assert len(page.encode()) <= LARGEST < 1_000_000
    assert page.count("data:image/png;base64,") == 2  # of 100 kB, or 134 kB in base64
    assert "2 examples are without their picture" in page
