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

from miniclip.common.durable import whole_file
from miniclip.inspection.contents import Inspection
from miniclip.inspection.numbers import numbers
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
    blocks += [_block(f"sheet-{k}", sheet) for k, sheet in enumerate(sheets)]
    needed = {"rounded": n > _EXACT, "factors": factors, "thumbnail": THUMBNAIL, "sheet": _SHEET, "sheets": len(sheets)}
    folder = files("miniclip.inspection.page")
    page = Template((folder / "page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(inspection.title),
        style=(folder / "page.css").read_text(encoding="utf-8"),
        data=_json(numbers(inspection) | needed),
        blocks="\n".join(blocks),
        script="\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS),
    )
    path = Path(path)
    with whole_file(path) as part:
        part.write_bytes(page.encode("utf-8", "replace"))
    return path


def _json(value: Any) -> str:
    """JSON that may stand inside a script element: no <, > or &, and ASCII only."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _matrices(inspection: Inspection) -> tuple[list[str], dict[str, float]]:
    """A block for every matrix, and for each float16 one the factor that it is to be multiplied by."""
    packed, factors = len(inspection.cosine) > _EXACT, {}
    positives = np.packbits(inspection.positives.numpy(), bitorder="little")
    blocks = [_array("m-cosine", inspection.cosine.numpy().astype("<f4"), packed)]
    blocks.append(_array("m-positives", positives, packed))
    for name, view in inspection.losses.items():
        for kind, matrix in (("pair_loss", view.pair_loss), ("gradient", view.gradient)):
            key, values = f"m-{kind}-{name}", matrix.double().numpy()
            largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0)) or 1.0
            factors[key] = largest / _FULL
            if packed:  # what nobody can see would be most of the file
                values = np.where(np.abs(values) < largest * 2.0**-17, 0.0, values)
            halves = (values / factors[key]).astype("<f2")
            blocks.append(_array(key, _rounded(halves) if packed else halves, packed))
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
    """A block of the bytes; packed: gzipped, first the lowest byte of every number, then the next of every number."""
    if not packed:
        return _block(key, values.tobytes())
    planes = values.reshape(-1, 1).view(np.uint8).T.tobytes()
    return _block(key, gzip.compress(planes, 6, mtime=0), f' data-planes="{values.itemsize}"')


def _block(key: str, content: bytes, attribute: str = "") -> str:
    coded = base64.b64encode(content).decode()
    return f'<script type="application/octet-stream" id="{html.escape(key)}"{attribute}>{coded}</script>'


def _sheets(thumbnails: list[Image.Image]) -> list[bytes]:
    """JPEG sheets of 16 x 16 thumbnails, row by row."""
    sheets = []
    for start in range(0, len(thumbnails), _SHEET**2):
        part = thumbnails[start : start + _SHEET**2]
        sheet = Image.new("RGB", (_SHEET * THUMBNAIL, -(-len(part) // _SHEET) * THUMBNAIL))
        for k, image in enumerate(part):
            small = image.convert("RGB").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
            sheet.paste(small, (k % _SHEET * THUMBNAIL, k // _SHEET * THUMBNAIL))
        buffer = io.BytesIO()
        sheet.save(buffer, "JPEG", quality=75)
        sheets.append(buffer.getvalue())
    return sheets
