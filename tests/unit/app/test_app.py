"""What the page computes and shows, without a browser."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import ttf
from tests.composing import composed
from ttf.app import html
from ttf.app.comparison import Way, compare, twins_of
from ttf.app.link import BUDGET, Settings, parsed_blocks, settings
from ttf.app.shelf import PAPER, Shelf, methods
from ttf.app.viewers import shown

OURS = Way("ours", {"method": "token_transform", "ratio": 0.5})


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    paths = composed("app").paths
    paths.weights, paths.data = None, str(tmp_path_factory.mktemp("none"))
    return Shelf(paths, "cpu", ["vit_mini", "segmenter_mini", "vitdet_ti", "dpt_mini", "llava_mini"])


@pytest.fixture(scope="module")
def found(shelf):
    loaded = shelf.loaded("vit_mini")
    return compare(loaded, loaded.pictures[0], [OURS, Way("evit", {"method": "evit", "ratio": 0.5})])


def test_what_it_says_is_what_the_model_says(shelf, found):
    loaded = shelf.loaded("vit_mini")
    base, ours, evit = found.columns
    assert [column.title for column in found.columns] == ["uncompressed", "ours", "evit"] and not found.refused
    image = loaded.viewer.prepare(loaded.pictures[0]).unsqueeze(0)
    twin = ttf.apply(ttf.twin(loaded.model), ratio=0.5)
    with torch.no_grad():
        p, q = loaded.model(image)[0].softmax(0), twin(image)[0].softmax(0)
    assert base.answer.lines[0] == (str(int(p.argmax())), pytest.approx(p.max().item()))
    assert float(ours.change["KL, nats"]) == pytest.approx((p * (p / q).log()).sum().item(), abs=1e-4)
    assert ours.gmacs == pytest.approx(ttf.measure.gmacs(twin, image.shape)) and ours.gmacs < base.gmacs
    assert ours.remaining == ((3, 73), (6, 37), (9, 19)) and base.remaining == ()
    assert ttf.plan(loaded.model) is None and evit.layers


def test_every_method_that_is_offered_can_be_shown(shelf):
    loaded = shelf.loaded("vit_mini")
    twins, refused = twins_of(loaded.model, [Way(name, {**told, "ratio": 0.6}) for name, told in methods().items()])
    assert PAPER in methods() and "sinkhorn" not in methods()
    assert not refused and len(twins) == len(methods()) + 1 > 20


def test_rows_of_w_are_those_of_the_trace(found):
    text, layer = html.tokens(found, np.zeros((96, 96, 3))), found.columns[1].layers[-1]
    told = dict(re.findall(r'data-(\w+)="([^"]*)"', text.split("<h4>evit")[0]))
    rows = np.frombuffer(html.base64.b64decode(told["rows"]), np.uint8).reshape(-1, 144) / 255
    W = layer.total[0][:, 1:]
    assert np.abs(rows - (W / W.amax(1, keepdim=True).clamp_min(1e-12)).numpy()).max() <= 0.5 / 255 + 1e-6
    owner = np.frombuffer(html.base64.b64decode(told["owner"]), np.uint16)
    assert len(owner) == 144 and owner.max() < len(rows) and told["grid"] == "12,12"


def test_pictures_have_texts_and_tables_have_captions(found):
    text = html.tokens(found, np.zeros((96, 96, 3))) + html.numbers(found) + html.answers(found)
    assert all(re.search(r'alt="', image) for image in re.findall(r"<img[^>]*>", text))
    assert text.count("<caption>") == 1 and "tokens after block 6" in text and "aria-live" in text
    assert all('aria-label="' in meter for meter in re.findall(r"<meter[^>]*>", text))


def test_masks_and_boxes(shelf):
    masks = shelf.loaded("segmenter_mini")
    seen = compare(masks, masks.pictures[0], [OURS])
    assert seen.columns[1].answer.picture.size == (96, 96) and "KL a pixel, nats" in seen.columns[1].change
    assert sum(share for _, share in seen.columns[0].answer.lines) <= 1.0001
    boxes = shelf.loaded("vitdet_ti")
    assert boxes.pictures == []  # its photographs are not here, and it takes any picture
    seen = compare(boxes, Image.new("RGB", (320, 240), "pink"), [OURS])
    assert seen.columns[1].change["boxes that agree (F1)"].endswith("%") and seen.columns[0].answer.picture
    assert shown(seen.image, boxes.viewer.mean, boxes.viewer.std).shape == (240, 320, 3)


def test_depths(shelf):
    """The numbers are those of the model; near is bright, and a colour is the same depth in every column."""
    loaded = shelf.loaded("dpt_mini")
    seen = compare(loaded, loaded.pictures[0], [OURS])
    image = loaded.viewer.prepare(loaded.pictures[0]).unsqueeze(0)
    with torch.no_grad():
        base = loaded.model(image)[0]
        ours = ttf.apply(ttf.twin(loaded.model), ratio=0.5)(image)[0]
    (line, share), picture = seen.columns[0].answer.lines[0], np.asarray(seen.columns[0].answer.picture).sum(2)
    assert line == f"nearest {base.min():.2f} m, farthest {base.max():.2f} m" and share == -1
    assert picture.shape == (96, 96) and picture[base == base.min()] > picture[base == base.max()]
    off = 100 * ((ours - base).abs() / base).mean().item()
    assert float(seen.columns[1].change["depth that differs"].split()[0]) == pytest.approx(off, abs=0.01) and off > 0
    far = loaded.viewer.beside(
        replace(seen.columns[1].answer, raw=torch.full((96, 96), base.max())), seen.columns[0].answer
    )
    assert (np.asarray(far.picture).sum(2) == picture[base == base.max()][0]).all()
    assert "<ol class=ttf-lines><li>nearest" in html.answers(seen) and "<meter" not in html.answers(seen)


def test_questions(shelf):
    """The data set's own come first; what is answered is what the model answers with the tokens that remain."""
    pytest.importorskip("transformers", reason="needs transformers: pip install 'ttf[hf]'")
    loaded = shelf.loaded("llava_mini")
    assert loaded.viewer.asks and len(loaded.pictures) == 8 and "how many digits are there ?" in loaded.questions
    asked = "which digit is the largest ?"
    seen = compare(loaded, loaded.pictures[0], [OURS], asked)
    image = loaded.viewer.prepare(loaded.pictures[0]).unsqueeze(0)
    twin = ttf.apply(ttf.twin(loaded.model), ratio=0.5)
    with torch.no_grad():
        said = [model.answer([asked], model.features(image))[0] for model in (loaded.model, twin)]
    assert [column.answer.lines[0][0] for column in seen.columns] == said and said[0].isdigit()
    read = [column.answer.lines[1][0] for column in seen.columns]
    assert read == [f"{count} tokens of the picture were read" for count in (144, 18)]
    assert seen.columns[1].change == {"same answer": "yes" if said[0] == said[1] else "no"}
    lines = compare(loaded, loaded.pictures[0], [], "Is it <b> there ?").columns[0].answer.lines
    assert lines[2][0].startswith("words that it does not know: Is, it") and "<b>" not in html.answers(seen)
    silent = compare(loaded, loaded.pictures[0], [], " ").columns[0].answer
    assert silent.lines[0][0] == "(ask a question)" and len(silent.lines) == 2


def test_a_way_that_a_model_cannot_go_is_said(shelf):
    loaded = shelf.loaded("vit_mini")
    seen = compare(loaded, loaded.pictures[0], [Way("late <b>", {"method": "evit", "ratio": 0.5, "blocks": [40]})])
    assert len(seen.columns) == 1 and "40" in seen.refused["late <b>"]
    assert "role=alert" in html.numbers(seen) and "<b>" not in html.numbers(seen)


def test_links():
    told = Settings(model="vit_mini", method="evit", value=0.35, by=BUDGET, blocks="3, 6", image=2)
    query = dict(pair.split("=") for pair in told.query()[1:].replace("%2C", ",").replace("+", " ").split("&"))
    assert settings(query, ["vit_s", "vit_mini"], ["evit", "token_transform"]) == told
    assert told.options() == {"budget": 0.35, "blocks": [3, 6]}
    broken = {"model": "nonsense", "value": "much", "image": "x", "by": "moon", "extra": "1", "method": "evit"}
    assert settings(broken, ["vit_mini"], ["evit"]) == replace(Settings(), model="vit_mini", method="evit")
    assert settings({"value": "7"}, ["vit_mini"], []).value == 0.7
    with pytest.raises(ValueError, match="blocks are numbers"):
        parsed_blocks("3;x")


def test_a_shelf_offers_what_is_here(shelf):
    assert shelf.names[0] == "vit_mini" and {"segmenter_mini", "vitdet_ti", "dpt_mini"} < set(shelf.names)
    with pytest.raises(ValueError, match="there is no model vit_nano"):
        Shelf(shelf.paths, "cpu", ["vit_nano"])
    with pytest.raises(ValueError, match="is not here: choose one of"):
        shelf.loaded("deit_s")
