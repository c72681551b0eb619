"""What the page shows, as HTML: tables with captions, pictures with texts in their place, rows of W to point at."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ttf.app.comparison import Column, Comparison
from ttf.app.viewers import Answer
from ttf.report.figures import SHARED, dimmed, flow, typical_rows

SIDE = 224  # pixels that the longer side of a small panel has
LARGE = 448


def _data(picture: Image.Image | np.ndarray, side: int) -> str:
    """A picture as a data: address, its longer side ``side`` pixels."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray((255 * picture).round().astype(np.uint8))
    factor = side / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    buffer = io.BytesIO()
    picture.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _image(picture: Any, words: str, caption: str, side: int = SIDE) -> str:
    source = _data(picture, side)
    return f'<figure><img src="{source}" alt="{escape(words)}"><figcaption>{escape(caption)}</figcaption></figure>'


def _cells(tag: str, values: Sequence[str]) -> str:
    return "".join(f"<{tag} scope=col>{escape(v)}</{tag}>" if tag == "th" else f"<td>{escape(v)}</td>" for v in values)


def _table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = "".join(f"<tr><th scope=row>{escape(first)}</th>{_cells('td', rest)}</tr>" for first, *rest in rows)
    head = f"<tr>{_cells('th', header)}</tr>"
    return f"<table class=ttf><caption>{escape(caption)}</caption><thead>{head}</thead><tbody>{body}</tbody></table>"


def numbers(found: Comparison) -> str:
    """GMACs, time, change and tokens, a column a way."""
    base = found.columns[0]
    rows = [
        ["GMACs", *(f"{c.gmacs:.3f}" for c in found.columns)],
        ["GMACs left", *(f"{100 * c.gmacs / base.gmacs:.1f} %" for c in found.columns)],
        ["time of this picture", *(f"{c.milliseconds:.1f} ms" for c in found.columns)],
        ["speed-up", *(f"{c.speed_up:.2f}x" for c in found.columns)],
    ]
    changes = dict.fromkeys(name for column in found.columns for name in column.change)
    rows += [[name, *(column.change.get(name, "") for column in found.columns)] for name in changes]
    blocks = sorted({block for column in found.columns for block, _ in column.remaining})
    rows += [
        [f"tokens after block {block}", *(str(dict(c.remaining).get(block, "")) for c in found.columns)]
        for block in blocks
    ]
    caption = "Numbers of this picture. Times: batch of one, all ways interleaved, median."
    return _table(caption, ["", *(column.title for column in found.columns)], rows) + _refusals(found)


def _refusals(found: Comparison) -> str:
    return "".join(f"<p role=alert>{escape(title)}: {escape(why)}</p>" for title, why in found.refused.items())


def _lines(answer: Answer) -> str:
    def bar(words: str, share: float) -> str:
        if share < 0:
            return f"<li>{escape(words)}</li>"
        value = f'<meter min=0 max=1 value={share:.4f} aria-label="{escape(words)}"></meter>'
        return f"<li><span>{escape(words)}</span>{value}<span>{100 * share:.1f} %</span></li>"

    return f"<ol class=ttf-lines>{''.join(bar(*line) for line in answer.lines)}</ol>"


def _said(column: Column) -> str:
    answer = column.answer
    drawn = _image(answer.picture, f"answer of the {column.title} model", "", LARGE) if answer.picture else ""
    keys = "".join(f'<li><i style="background:{c}"></i>{escape(name)}</li>' for c, name in answer.legend)
    return f"<section><h4>{escape(column.title)}</h4>{drawn}<ul class=ttf-key>{keys}</ul>{_lines(answer)}</section>"


def answers(found: Comparison) -> str:
    """What the model says in each way, side by side."""
    return f"<div class=ttf-columns>{''.join(_said(column) for column in found.columns)}</div>"


def _bytes(values: Tensor, kind: Any) -> str:
    return base64.b64encode(values.cpu().numpy().astype(kind).tobytes()).decode()


def _pointed(column: Column, picture: np.ndarray) -> str:
    """The picture to point at: each patch shows the row of W that takes most of it."""
    last = column.layers[-1]
    divided, weights = flow(column.layers, 0)[:, last.prefix :], last.total[0][:, last.prefix :]
    if weights.shape[1] != last.grid[0] * last.grid[1]:
        return ""  # windows: their rows are not over the picture
    share, owner = divided.max(0)
    rows = weights / weights.amax(1, keepdim=True).clamp_min(1e-12)
    start = (typical_rows(last, 0, 1) or [0])[0]
    values = {
        "grid": ",".join(map(str, last.grid)),
        "rows": _bytes((255 * rows).round(), np.uint8),
        "owner": _bytes(owner, np.uint16),
        "share": _bytes((255 * share).round(), np.uint8),
        "several": _bytes((divided > SHARED).sum(0).clamp(max=255), np.uint8),
        "sizes": ",".join(f"{size:.1f}" for size in last.sizes[0].tolist()),
        "origin": ",".join(str(int(place) - last.prefix) for place in last.origin[0]),
        "start": str(int(weights[start].argmax())),
        "prefix": str(last.prefix),
    }
    attributes = " ".join(f'data-{name}="{value}"' for name, value in values.items())
    words = f"Rows of W of {column.title}: point at a patch, or move with the arrow keys"
    return (
        f'<figure class=ttf-rows tabindex=0 role=application aria-label="{escape(words)}" {attributes}><div>'
        f'<img src="{_data(picture, LARGE)}" alt="" onload="window.ttfStart &amp;&amp; ttfStart(this)">'
        "<canvas></canvas></div>"
        "<figcaption aria-live=polite>Point at a patch, click to hold it, or use the arrow keys.</figcaption></figure>"
    )


def tokens(found: Comparison, picture: np.ndarray) -> str:
    """The patches that remain behind every reducing layer, and rows of W, one line a way.

    Args:
        found: the comparison.
        picture: (h, w, 3) in [0, 1], as the model sees it.
    """
    lines = []
    for column in found.columns[1:]:
        if not column.layers:
            lines.append(f"<section><h4>{escape(column.title)}</h4><p>No layer reduces tokens.</p></section>")
            continue
        panels = [
            _image(
                dimmed(picture, layer, 0),
                f"{column.title}: the patches that remain as tokens after block {layer.block}, others dimmed",
                f"after block {layer.block}: {count} of {layer.total.shape[-1]} tokens",
            )
            for layer, (_, count) in zip(column.layers, column.remaining, strict=True)
        ]
        strip = f"<div class=ttf-strip>{''.join(panels)}</div>"
        lines.append(f"<section><h4>{escape(column.title)}</h4>{strip}{_pointed(column, picture)}</section>")
    return "".join(lines) or "<p>Choose a method to see tokens go.</p>"
