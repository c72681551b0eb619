"""POPE on label maps: its construction, what is there, and what a language model is trained on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ttf import config_store
from ttf.data.pope import SPLITS, Objects, Polling
from ttf.data.segmentation import CamVid
from ttf.errors import MissingError

pytest.importorskip("transformers", reason="needs transformers: pip install 'ttf[hf]'")

from ttf.data.packed_questions import IGNORED
from ttf.data.street_questions import CamVidPope, PackedStreets, cut, objects, patch_labels, question
from ttf.models.llava_mini import encoder_of, llava_ti, take_tower
from ttf.models.segmenter import Segmenter
from ttf.models.weights import TOWER, load_model, save_weights
from ttf.training.answering import Answered, Answering, ModelReader

SKY, ROAD, CAR, BICYCLIST, VOID = 0, 3, 8, 10, 11
IMAGES = [
    Objects(("car", "road")),
    Objects(("road", "sky")),
    Objects(("tree", "road", "car")),
    Objects(("sky",), unclear=("car",)),
]


def _asked(images: list[Objects], index: int, split: str, **how: Any) -> list[tuple[str, str]]:
    return [(name, said) for part, name, said in Polling(images, **how).asked(index) if part == split]


def test_negatives_of_popular_and_adversarial():
    """By hand: road is the most frequent, then car and sky; tree was seen with car, sky was not."""
    assert _asked(IMAGES, 0, "popular") == [("car", "yes"), ("sky", "no"), ("road", "yes"), ("tree", "no")]
    assert _asked(IMAGES, 0, "adversarial") == [("car", "yes"), ("tree", "no"), ("road", "yes"), ("sky", "no")]


def test_negatives_are_absent_and_asked_for_once():
    for index, image in enumerate(IMAGES):
        for split in SPLITS:
            said = _asked(IMAGES, index, split, seed=5)
            absent = [name for name, answer in said if answer == "no"]
            assert len(absent) == len(set(absent)) == len(said) / 2 <= 3
            assert not {*absent} & {*image.there, *image.unclear}
    assert _asked(IMAGES, 2, "random") == [("tree", "yes"), ("sky", "no")]  # nothing else is missing
    assert _asked(IMAGES, 2, "random", pairs=0) == []
    drawn = {_asked(IMAGES, 1, "random", seed=seed)[1][0] for seed in range(20)}
    assert drawn == {"car", "tree"} and _asked(IMAGES, 1, "random") == _asked(IMAGES, 1, "random")


@pytest.fixture(scope="module")
def camvid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photographs of 64 x 48 pixels: sky above, road below, a car, and in one of them a bicyclist."""
    root = tmp_path_factory.mktemp("camvid")
    for split in ("train", "val", "test"):
        for number in range(4):
            labels = np.full((48, 64), SKY, np.uint8)
            labels[24:], labels[30:40, 8:24], labels[:4] = ROAD, CAR, VOID
            if number == 2:
                labels[28:44, 40:48] = BICYCLIST
            if number == 3:
                labels[47, :2], labels[30:40, 8:24] = CAR, ROAD  # two pixels of a car
            for kind, picture in (("annotations", labels), ("images", np.repeat(labels[..., None] * 20, 3, 2))):
                path = root / kind / split / f"{number}.{'png' if kind == 'annotations' else 'jpg'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
    return root


def test_questions_are_answered_by_the_label_maps(camvid: Path):
    data, said = CamVidPope(camvid, least=0.002, share=1), Counter[str]()
    assert len(data) == 4 and data[2][0].size == (64, 48)
    for index in range(4):
        present = {CamVid.classes[n] for n in data.part(index)[1].unique().tolist() if n < 11}
        for one in data.questions(index):
            name = one.text.removeprefix("is there a ").removesuffix(" in the image ?")
            assert (name in present) == (one.answers[0] == "yes") and one.benchmark == "pope" and one.part in SPLITS
            assert index != 3 or name != "car"  # too few pixels to be asked for
            said[one.answers[0]] += 1
    assert said["yes"] == said["no"] > 0
    assert "bicyclist" in {one.text.split()[3] for one in data.questions(0)}
    assert data.questions(2) == []  # all that the set has is there


def test_identity_and_mistakes(camvid: Path, tmp_path: Path):
    data = CamVidPope(camvid)
    assert data.digest() == CamVidPope(camvid).digest() != CamVidPope(camvid, seed=1).digest()
    assert [q.id for q in data.questions(0)] == [q.id for q in CamVidPope(camvid).questions(0)]
    with pytest.raises(MissingError, match="no CamVid at"):
        CamVidPope(tmp_path)
    with pytest.raises(IndexError):
        data[4]
    with pytest.raises(ValueError, match="share is that of a photograph's sides"):
        CamVidPope(camvid, share=0)
    part, mask = data.part(2)
    assert part.size == (26, 19) and mask.shape == (19, 26) and data.image(2).tobytes() == part.tobytes()


def test_parts_of_a_photograph_keep_its_shape_and_its_labels(camvid: Path):
    picture, mask = CamVid(camvid, "train")[2]
    for seed in range(6):
        part, labels = cut(picture, mask, np.random.default_rng(seed), 0.4, 1)
        assert part.size == (labels.shape[1], labels.shape[0]) and abs(part.width / part.height - 4 / 3) < 0.1
        grey = torch.from_numpy(np.asarray(part)[..., 0].astype(int))
        assert ((grey - labels * 20).abs() < 60).double().mean() > 0.9  # it shows what its labels say, as JPEG has it


def test_labels_of_patches_lie_in_the_padded_square(camvid: Path):
    labels = patch_labels(CamVid(camvid, "test").mask(2), 64, 8).view(8, 8)
    assert (labels[0] == IGNORED).all() and (labels[7] == IGNORED).all()  # 8 rows of padding above and below
    assert labels[2, 0] == SKY and labels[6, 0] == ROAD and labels[5, 1] == CAR and labels[5, 5] == BICYCLIST


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return llava_ti(width=32, depth=1, side=64)


def test_the_tower_is_the_encoder_of_a_segmenter(model: Any):
    segmenter, images = Segmenter(img_size=(48, 64), num_classes=11, decoder_depth=1).eval(), torch.randn(1, 3, 64, 64)
    take_tower(model, segmenter)
    tower = encoder_of(model.model)
    with torch.no_grad():
        tokens = segmenter.encoder.blocks(segmenter.encoder.embed(images))  # its positions are resized there, too
        assert torch.allclose(tower(images).last_hidden_state, tokens, atol=1e-4)


def test_a_file_of_weights_leaves_the_tower_to_the_segmenter(model: Any, tmp_path: Path):
    """The tower is that of the embedded Segmenter, the rest is the file's."""
    save_weights(model, tmp_path / "weights.safetensors", half=True, without=TOWER)
    stored = load_file(tmp_path / "weights.safetensors")
    assert stored and not any("vision_tower" in name for name in stored)
    config = config_store.model("llava_ti_camvid")
    config.network.update(width=32, depth=1, side=64)
    loaded = load_model(config, tmp_path / "weights.safetensors")
    state = loaded.state_dict()
    assert all(torch.equal(state[name], value.float()) for name, value in stored.items())
    encoder = load_model(config_store.model("segmenter_ti_camvid")).encoder
    assert torch.equal(encoder_of(loaded.model).encoder.layers[3].mlp.fc1.weight, encoder.blocks[3].mlp.fc1.weight)


def test_training_asks_for_what_is_there_and_for_what_is_not(camvid: Path, model: Any):
    data = PackedStreets(camvid, "train", 8, views=8, side=64, transform=ModelReader(model))
    words, said = model.tokenizer.convert_ids_to_tokens, Counter[str]()
    for item in range(8):
        tokens, labels, ids, answers, kinds, _, segments = data[item]
        assert tokens.shape == (16, 192) and labels.shape == (16,)
        things = data.labelled(item).things
        for number in range(1, int(segments.max()) + 1):
            own = segments == number
            name, answer = data.kinds[int(kinds[own].max())], words(int(answers[own][answers[own] != IGNORED][0]))
            assert name in words(ids[own].tolist()) and (answer == "yes") == (name in things.there)
            assert name not in things.unclear
            said[answer] += 1
    assert len(said) == 2 and min(said.values()) > 10


def test_every_class_is_asked_for_to_watch_and_learning_leaves_the_tower(camvid: Path, model: Any):
    data = PackedStreets(camvid, "val", side=64, transform=ModelReader(model))
    for item in range(4):
        clear = 11 - len(data.labelled(item).things.unclear)
        assert int(data[item][6].max()) == clear and len(data) == 4
    objective = Answering(model, patch_words=CamVid.classes)
    objective(*(part.unsqueeze(0) for part in data[0])).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained and not any("vision_tower" in name for name in trained)
    assert Answered(data.kinds).parts == CamVid.classes


def test_unclear_classes_are_named():
    mask = torch.full((10, 100), ROAD)
    mask[0, 0], mask[1, :3] = CAR, SKY
    found = objects(mask, 0.002, np.random.default_rng(0))
    assert {*found.there} == {"road", "sky"} and found.unclear == ("car",)
    assert question("car") == "is there a car in the image ?"
