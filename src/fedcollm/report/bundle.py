"""What a page unpacks in the browser, compressed so that the page stays small: plotly.js, and the plots as JSON.

`plotly-cartesian.min.js.gz` is the file `plotly-cartesian.min.js` of the npm package `plotly.js-cartesian-dist-min`,
in the version of plotly.js that the Python package `plotly` holds too, compressed by `gzip -9 -n`. It is under the MIT
license of `plotly-cartesian.LICENSE`. The page unpacks it with the browser's own `DecompressionStream`.
"""

import base64
import gzip
import re
from importlib.resources import files

_NAME = "plotly-cartesian.min.js.gz"


def script() -> str:
    """Return the compressed script in base64."""
    return base64.b64encode(_content()).decode("ascii")


def packed(text: str) -> str:
    """Return a text, compressed, in base64; equal texts give equal results."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode("ascii")


def version() -> str:
    """Return the version of plotly.js, as the script's first line says."""
    found = re.search(rb"plotly\.js \(cartesian - minified\) v([0-9.]+)", gzip.decompress(_content())[:300])
    return found[1].decode() if found else ""


def _content() -> bytes:
    return (files("fedcollm.report") / _NAME).read_bytes()
