"""An inspection as one HTML file, which works offline.

Sources of the page, put together here: page.html, page.css and the scripts of SCRIPTS. Small values go in as JSON, a
matrix as base64 in a block of its own, thumbnails as JPEG sheets.
"""

from __future__ import annotations

import base64
import gzip
import html
import io
import json
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from miniclip.inspection.contents import Inspection
from miniclip.inspection.numbers import finite, numbers
from miniclip.inspection.sample import THUMBNAIL

SCRIPTS = ("page_data.js", "page_matrix.js", "page_charts.js", "page.js")
_SHEET = 16  # thumbnails along each side of a sheet
_EXACT = 512  # pairs; beyond, all matrices are gzipped, and pair losses and gradients rounded to 5 bits of mantissa
_FULL = 2.0**15  # what the largest float16 of a matrix becomes: so high up, small ones keep all of their digits
_PLAIN_BYTES = 2**21  # beyond, the matrices of the history are gzipped


def write_report(inspection: Inspection, path: str | Path) -> Path:
    """Write the page to path, whose folder must exist, and return it.

    Cosines go in as float32, pair losses and gradients as float16 times a factor, rounded further for more than 512
    pairs. Raises ValueError if there is not one thumbnail, caption and name a pair.
    """
    n = len(inspection.cosine)
    for name in ("captions", "names", "thumbnails"):
        if (count := len(getattr(inspection, name))) != n:
            raise ValueError(f"there are {count} {name} for {n} pairs; pass one a pair")
    blocks, factors = _matrices(inspection)
    sheets = _sheets(inspection.thumbnails)
    blocks += [_block(f"sheet-{k}", base64.b64encode(sheet).decode()) for k, sheet in enumerate(sheets)]
    folder = files("miniclip.inspection.page")
    page = Template((folder / "page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(inspection.title),
        style=(folder / "page.css").read_text(encoding="utf-8"),
        data=_json(_contents(inspection, factors, len(sheets))),
        blocks="\n".join(blocks),
        script="\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS),
    )
    path = Path(path)
    path.write_bytes(page.encode("utf-8", "replace"))
    return path


def _json(value: Any) -> str:
    """JSON that may stand inside a script element: no <, > or &, and ASCII only."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _contents(inspection: Inspection, factors: dict[str, float], sheets: int) -> dict[str, Any]:
    """The numbers of matrix.json without its matrices, and what a page needs beside them."""
    data = numbers(inspection, whole=False)
    if inspection.history:
        training = inspection.history.training.items()
        data["history"]["training"] = {name: [finite(value) for value in values] for name, values in training}
    return data | {
        "figures": [figure._asdict() | {"value": finite(figure.value)} for figure in inspection.figures],
        "rounded": len(inspection.cosine) > _EXACT,
        "factors": factors,
        "thumbnail": THUMBNAIL,
        "sheet": _SHEET,
        "sheets": sheets,
    }


def _matrices(inspection: Inspection) -> tuple[list[str], dict[str, float]]:
    """A block for every matrix, and for each float16 one the factor that it is to be multiplied by."""
    packed = len(inspection.cosine) > _EXACT
    positives = np.packbits(inspection.positives.numpy(), bitorder="little")
    cosine = inspection.cosine.numpy().astype("<f4")
    blocks, factors = [_array("m-cosine", cosine, packed), _array("m-positives", positives, packed)], {}
    for name, view in inspection.losses.items():
        for kind in ("pair_loss", "gradient"):
            values = getattr(view, kind).double().numpy()
            largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0)) or 1.0
            factor = largest / _FULL
            if packed:  # what nobody can see would be most of the file
                values = np.where(np.abs(values) < largest * 2.0**-17, 0.0, values)
            halves = (values / factor).astype("<f2")
            factors[f"m-{kind}-{name}"] = factor
            blocks.append(_array(f"m-{kind}-{name}", _rounded(halves) if packed else halves, packed))
    if inspection.history:
        cosines = inspection.history.cosines.numpy().astype("<f2")
        factors["m-history"] = 1.0
        blocks.append(_array("m-history", cosines, cosines.nbytes > _PLAIN_BYTES))
    return blocks, factors


def _rounded(halves: np.ndarray) -> np.ndarray:
    """float16 with the last 5 of its 10 bits of mantissa rounded away, half up; what is not finite stays."""
    bits = halves.view("<u2")
    rounded = ((bits.astype("<u4") + 16) >> 5 << 5).astype("<u2")
    return np.where(np.isfinite(halves), rounded, bits).astype("<u2").view("<f2")


def _array(key: str, values: np.ndarray, packed: bool) -> str:
    """The bytes in base64; packed: gzipped, first the lowest byte of every number, then the next of every number."""
    if not packed:
        return _block(key, base64.b64encode(values.tobytes()).decode())
    planes = values.reshape(-1, 1).view(np.uint8).T.tobytes()
    return _block(key, base64.b64encode(gzip.compress(planes, 6, mtime=0)).decode(), values.itemsize)


def _block(key: str, content: str, planes: int = 0) -> str:
    attribute = f' data-planes="{planes}"' if planes else ""
    return f'<script type="application/octet-stream" id="{html.escape(key)}"{attribute}>{content}</script>'


def _sheets(thumbnails: list[Image.Image]) -> list[bytes]:
    """JPEG sheets of 16 x 16 thumbnails, row by row."""
    sheets = []
    for start in range(0, len(thumbnails), _SHEET**2):
        part = thumbnails[start : start + _SHEET**2]
        rows = -(-len(part) // _SHEET)
        sheet = Image.new("RGB", (_SHEET * THUMBNAIL, rows * THUMBNAIL))
        for k, image in enumerate(part):
            small = image.convert("RGB").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
            sheet.paste(small, (k % _SHEET * THUMBNAIL, k // _SHEET * THUMBNAIL))
        buffer = io.BytesIO()
        sheet.save(buffer, "JPEG", quality=75)
        sheets.append(buffer.getvalue())
    return sheets
