"""How methods are drawn, the same in every figure: colour, marker and line tell them apart, in grey too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MOST = 8  # curves in one panel that an eye can tell apart
MARKERS = "osD^v<>pPXh*d"
LINES = ("-", "--", "-.", ":")
FAINT: dict[str, Any] = {"color": "0.55", "linewidth": 0.7, "markersize": 4, "zorder": 2}
# Title to colour (Okabe and Ito's, for all eyes), marker and line, in the order of legends.
KNOWN: dict[str, tuple[str, str, Any]] = {
    "uncompressed": ("black", "*", "-"),
    "ours (default)": ("black", "o", "-"),
    "ours (default), late blocks": ("black", "s", "--"),
    "ours (searched)": ("#332288", "D", "-"),
    "ours (searched), means by attention": ("#332288", "^", "--"),
    "ours (default), back by W transposed": ("0.5", "v", "--"),
    "ours (literal)": ("#CC79A7", "P", ":"),
    "ours (literal), back on the masks": ("#882255", "D", "-."),
    "ours, places": ("black", "o", "-"),
    "ours, grid": ("#CC79A7", "s", "--"),
    "ours, no shift": ("0.5", "D", ":"),
    "ToMe": ("#0072B2", "h", "-"),
    "DiffRate": ("#D55E00", "v", "-"),
    "ToMe (searched)": ("#0072B2", "p", "--"),
    "MCTF at 3 blocks": ("#E69F00", "X", "-"),
    "MCTF (searched)": ("#E69F00", "d", "--"),
    "PiToMe": ("#56B4E9", ">", ":"),
    "DPC-KNN": ("#E69F00", "^", "--"),
    "EViT": ("#009E73", "<", "-."),
    "every k-th token": ("#882255", "s", ":"),
    "PPT": ("#56B4E9", "p", ":"),
    "Hourglass": ("#D55E00", "d", "-"),
    "Hourglass, temperature 2": ("#E69F00", ">", "--"),
    "Hourglass, temperature fitted": ("#E69F00", ">", "--"),
    "ACT": ("#8c564b", "X", "-"),
}
NAMES = {
    "vit_ti_augreg": "ViT-Ti AugReg",
    "deit_ti": "DeiT-Ti",
    "deit_s": "DeiT-S",
    "segmenter_ti_camvid": "Segmenter-Ti",
    "dpt_ti": "DPT-Ti",
    "dpt_hybrid": "DPT-Hybrid",
    "vitdet_ti": "ViTDet-Ti",
    "swin_mini": "Swin, width 32",
}


def ordered(titles: Sequence[str]) -> list[str]:
    """The known ones in the order of ``KNOWN``, then the others by name."""
    places = {title: place for place, title in enumerate(KNOWN)}
    return sorted(titles, key=lambda title: (places.get(title, len(places)), title))


def shown(titles: Sequence[str], wanted: Sequence[str] = ()) -> list[str]:
    """The at most eight titles that a figure draws: the wanted ones, else the first of ``ordered``."""
    return [title for title in wanted if title in titles][:MOST] or ordered(titles)[:MOST]


def styles(titles: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Options of ``Axes.plot`` by title; up to eight unknown ones get the colours that are free, others are faint."""
    free = [title for title in titles if title not in KNOWN]
    found = {}
    for title in titles:
        if title in KNOWN:
            colour, marker, line = KNOWN[title]
            found[title] = {
                "color": colour,
                "marker": marker,
                "linestyle": line,
                "linewidth": 1.6,
                "markersize": 6,
                "zorder": 4,
            }
            continue
        number = free.index(title)
        look = {"marker": MARKERS[number % len(MARKERS)], "linestyle": LINES[number % len(LINES)]}
        bright = {"color": f"C{number}", "linewidth": 1.4, "markersize": 5, "zorder": 3}
        found[title] = look | (bright if len(titles) <= MOST else FAINT)
    return found
