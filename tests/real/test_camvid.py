"""The committed Segmenter on real street scenes of CamVid, compressed beside uncompressed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.composing import composed
from ttf.data.segmentation import CamVid
from ttf.data.street_questions import CamVidPope
from ttf.results.store import Row
from ttf.tasks.run import execute

pytestmark = [pytest.mark.real, pytest.mark.slow]
IMAGES = 12
EVIT = ("experiment=fig4b/evit", "ratio=0.7", "blocks=[3,6,9]")


@pytest.fixture(scope="module")
def evaluate(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Row]:
    folder = tmp_path_factory.mktemp("camvid")
    places = [f"paths.{name}={folder}/{name}" for name in ("rows", "runs", "cache")]  # no published rows among them
    places.append(f"paths.camvid={shared}/data/camvid")

    def run(*overrides: str) -> Row:
        common = ["model=segmenter_ti_camvid", f"limit={IMAGES}", "throughput.batch_size=0"]
        return execute(composed("eval", *overrides, *common, *places))

    return run


def test_the_uncompressed_model_segments_streets(evaluate: Callable[..., Row]) -> None:
    row = evaluate("experiment=fig4b/none")
    assert row["images"] == IMAGES
    assert row["metrics"]["miou"]["value"] > 45  # a dozen images hold few pixels of the rare classes
    assert row["metrics"]["aacc"]["value"] > 80


def test_ours_stays_closer_than_pruning_at_equal_cost(evaluate: Callable[..., Row]) -> None:
    evit, ours = evaluate(*EVIT), evaluate("experiment=fig4b/ours_default", "ratio=0.58")
    assert ours["gmacs"] <= 1.01 * evit["gmacs"]
    assert ours["metrics"]["kl"]["value"] < evit["metrics"]["kl"]["value"] / 3
    assert ours["metrics"]["miou"]["value"] > evit["metrics"]["miou"]["value"]


def test_questions_about_streets_cannot_be_answered_without_looking(shared: Path) -> None:
    """The answer that is most often right for each class in the training photographs, against the published row."""
    root, said, right, asked = shared / "data" / "camvid", Counter[str](), 0, 0
    for image in CamVidPope(root, "train").polling.images:
        said.update(image.there)
        said.subtract({*CamVid.classes} - {*image.there, *image.unclear})
    polling = CamVidPope(root).polling
    for index in range(len(polling.images)):
        for _, name, answer in polling.asked(index):
            right, asked = right + ((said[name] > 0) == (answer == "yes")), asked + 1
    assert asked == 3474 and 100 * right / asked == pytest.approx(68.2, abs=0.05)
