"""Loading weights: what is accepted, and one clear error for everything else."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

import ttf.cli  # noqa: F401  # registers what configs resolve
from ttf.building import build
from ttf.config_store import models
from ttf.doctor import examine
from ttf.errors import MissingError
from ttf.models import hub, weights
from ttf.models.weights import file_digest, fingerprint, load_model, load_strictly, read_checkpoint, save_weights

SMALL = {"img_size": 32, "num_classes": 10, "width": 48, "heads": 3, "depth": 2}
MAE = {"num_classes": 10, "img_size": 28, "patch_size": 14, "embed_dim": 32, "depth": 1, "num_heads": 2}
TIMM = {"model_name": "vit_tiny_patch16_224", "img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3}
DEFINITIONS = {
    "lv_vit_s": {"_target_": "ttf.models.lv_vit.lv_vit_s", **SMALL, "stem_width": 16},
    "t2t_vit_14": {"_target_": "ttf.models.t2t_vit.t2t_vit_14", **SMALL, "token_width": 16},
    "t2t_vit_t_14": {"_target_": "ttf.models.t2t_vit.t2t_vit_t_14", **SMALL, "token_width": 16},
    "ps_vit_b": {"_target_": "ttf.models.ps_vit.ps_vit_b_14", **SMALL},
    "mae_vit_h": {"_target_": "ttf.models.mae.mae_vit_h14", **MAE},
    "vit_mini": {"_target_": "ttf.models.vit_mini.vit_mini"},
    "vit_ti_augreg": {"_target_": "timm.create_model", **TIMM},
}
LV_FILE = "lvvit_s-26M-224-83.3.pth.tar"
CONFIGS = Path(__file__).parents[3] / "configs"


def _config(name, **changes):
    weights = "embedded" if name == "vit_mini" else "hub" if name == "vit_ti_augreg" else "official"
    return OmegaConf.create({"name": name, "weights": weights, "network": {**DEFINITIONS[name], **changes}})


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("nest", [None, "model", "state_dict"])
def test_both_formats_nested_or_not(tmp_path, network, suffix, nest):
    path, state = tmp_path / f"w{suffix}", network.state_dict()
    if suffix == ".safetensors":
        save_file(state, path, metadata={"mean": "0.1,0.2,0.3"})
    else:
        torch.save({f"module.{k}": v for k, v in state.items()} if nest is None else {nest: state, "epoch": 3}, path)
    tensors, metadata = read_checkpoint(path)
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[k], state[k]) for k in state)
    assert metadata == ({"mean": "0.1,0.2,0.3"} if suffix == ".safetensors" else {})


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("keep", [0, 10, 200])
def test_truncated_files(tmp_path, network, suffix, keep):
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    save_file(network.state_dict(), whole) if suffix == ".safetensors" else torch.save(network.state_dict(), whole)
    cut.write_bytes(whole.read_bytes()[:keep])
    with pytest.raises(ValueError, match="truncated or corrupt"):
        read_checkpoint(cut)


def test_pickled_code_is_never_run(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil.pth holds more than tensors \(print\)"):
        read_checkpoint(tmp_path / "evil.pth")
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("core", ["numpy._core", "numpy.core"])  # numpy 2 and 1
def test_training_checkpoints_with_options_and_numpy_numbers(tmp_path, network, core):
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.zeros(1, 4)).sum().backward()
    optimizer.step()
    content = {
        "epoch": 299,
        "arch": "t2t_vit_14",
        "state_dict": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "args": Namespace(lr=np.float64(1e-3), opt="adamw", betas=[0.9, np.float32(0.999)], model_ema=True),
        "metric": np.float64(81.5),
        "best_epoch": np.int64(298),
        "amp_scaler": {"scale": 65536.0},
    }
    torch.save(content, tmp_path / "w.pth.tar", _use_new_zipfile_serialization=False)
    written = (tmp_path / "w.pth.tar").read_bytes()
    (tmp_path / "w.pth.tar").write_bytes(written.replace(b"numpy._core.", f"{core}.".encode()))
    tensors, _ = read_checkpoint(tmp_path / "w.pth.tar")
    assert all(torch.equal(value, tensors[key]) for key, value in network.state_dict().items())


def test_averaged_weights_are_preferred_where_the_authors_evaluate_them(tmp_path, network):
    averaged, plain = {"a": torch.ones(1)}, {"module.a": torch.zeros(1)}
    torch.save({"model": plain, "state_dict": plain, "state_dict_ema": averaged}, tmp_path / "w.pth")
    assert read_checkpoint(tmp_path / "w.pth")[0]["a"] == 1
    assert read_checkpoint(tmp_path / "w.pth", prefer=("state_dict", "bare"))[0]["a"] == 0
    torch.save({"state_dict_ema": None, "state_dict": {"state_dict": averaged}}, tmp_path / "w.pth")
    assert read_checkpoint(tmp_path / "w.pth")[0]["a"] == 1


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint at .*absent.pth: give checkpoint=FILE"):
        read_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="no checkpoint at"):
        file_digest(tmp_path / "absent.pth")


def test_another_architecture_says_what_differs(network):
    state = network.state_dict()
    wrong = {
        "0.weight": torch.zeros(5, 4),
        "0.bias": state["0.bias"],
        "1.bias": state["1.bias"],
        "head": torch.zeros(1),
    }
    with pytest.raises(ValueError, match="another architecture") as caught:
        load_strictly(network, wrong, "file.pth")
    for part in ("missing: 1.weight", "not in the model: head", "0.weight (5, 4), not (3, 4)"):
        assert part in str(caught.value)


def test_values_that_are_not_finite(network):
    state = {k: v.clone() for k, v in network.state_dict().items()}
    state["1.bias"][0] = float("nan")
    with pytest.raises(ValueError, match=r"NaN or infinite values in 1\.bias"):
        load_strictly(network, state, "file.pth")


def test_half_precision_round_trip(tmp_path, network):
    save_weights(network, tmp_path / "half.safetensors", half=True)
    tensors, _ = read_checkpoint(tmp_path / "half.safetensors")
    assert all(v.dtype == torch.float16 for v in tensors.values())
    load_strictly(network, tensors, "half")
    assert network[0].weight.dtype == torch.float32


def test_fingerprint_follows_the_values(network):
    before = fingerprint(network)
    assert before == fingerprint(network)
    with torch.no_grad():
        network[0].weight[0, 0] += 1e-6
    assert before != fingerprint(network)


def test_weights_that_are_not_embedded_yet():
    config = OmegaConf.create({"name": "nobody", "weights": "embedded", "trained_by": "mini/x", "network": {}})
    with pytest.raises(MissingError, match="not embedded yet: ttf finetune experiment=mini/x trains it"):
        load_model(config)


def test_the_embedded_model_is_small_and_whole():
    config = OmegaConf.create(
        {"name": "vit_mini", "weights": "embedded", "network": {"_target_": "ttf.models.vit_mini.vit_mini"}}
    )
    model = load_model(config)
    assert len(model.blocks) == 12
    assert not model.training
    assert model(torch.zeros(1, 3, 96, 96)).shape == (1, 10)


def test_mean_and_std_of_a_checkpoint_take_precedence(tmp_path):
    config = OmegaConf.create(
        {"name": "vit_mini", "weights": "embedded", "network": {"_target_": "ttf.models.vit_mini.vit_mini"}}
    )
    path = tmp_path / "w.safetensors"
    save_file(load_model(config).state_dict(), path, metadata={"mean": "0.1,0.2,0.3", "std": "1,1,1"})
    model = load_model(config, path)
    assert model.pretrained_cfg["mean"] == (0.1, 0.2, 0.3)
    assert model.pretrained_cfg["std"] == (1.0, 1.0, 1.0)


def _hub_config(tag):
    network = {"_target_": "timm.create_model", "model_name": tag}
    return OmegaConf.create({"name": tag, "weights": "hub", "network": network})


def test_no_connection_is_one_clear_error(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "_asked", [])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = _hub_config("vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    with pytest.raises(MissingError, match=r"could not be downloaded.*folder paths\.weights, or give checkpoint=FILE"):
        load_model(config, folder=tmp_path)
    with pytest.raises(MissingError, match=r"folder paths\.weights \(.*none, which does not exist\)"):
        load_model(config, folder=tmp_path / "none")


def test_an_absent_hub_is_asked_once_and_not_for_long(monkeypatch):
    asked = []

    class Session:
        def head(self, url, timeout):
            asked.append((url, timeout))
            raise RuntimeError("cannot connect") from ConnectionError("no such host")

    monkeypatch.setattr(hub, "_asked", [])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "get_session", Session)
    for tag in ("vit_tiny_patch16_224", "vit_small_patch16_224"):
        with pytest.raises(MissingError, match=rf"{tag} could not be downloaded \(ConnectionError: no such host\)"):
            load_model(_hub_config(tag))
    assert len(asked) == 1 and asked[0][1] <= 2


def test_a_hub_that_goes_away_is_not_asked_again(monkeypatch):
    def absent(network, **_):
        raise LocalEntryNotFoundError("cannot find the requested files") from ConnectionError("no such host")

    monkeypatch.setattr(hub, "_asked", [None])
    monkeypatch.setattr(weights, "build", absent)
    with pytest.raises(MissingError, match="ConnectionError: no such host"):
        load_model(_hub_config("vit_tiny_patch16_224"))
    assert hub.unreachable() == "ConnectionError: no such host"


def test_a_folder_of_weights_comes_before_the_hub(tmp_path):
    torch.manual_seed(1)
    small = {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3}
    save_weights(timm.create_model("vit_tiny_patch16_224", **small), tmp_path / "vit_tiny_patch16_224.safetensors")
    network = {"_target_": "timm.create_model", "model_name": "vit_tiny_patch16_224", **small}
    config = OmegaConf.create({"name": "vit_ti_augreg", "weights": "hub", "network": network})
    assert len(load_model(config, folder=tmp_path).blocks) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"img_size": 48}, "made for 48x48 images (10 tokens), the model for 32x32 (5 tokens)"),
        ({"num_classes": 21843}, "has 21843 classes, the model 1000"),
        ({"patch_size": 8}, "file.pth has patches of 8 pixels, the model of 16; other shape"),
        ({"embed_dim": 96}, "is of another architecture than the model"),
    ],
)
def test_another_size_says_which(changes, said):
    model = timm.create_model(**TIMM)
    other = timm.create_model(**{**TIMM, **changes})
    with pytest.raises(ValueError, match="file.pth .*other shape") as caught:
        load_strictly(model, other.state_dict(), "file.pth")
    assert said in str(caught.value)


def test_another_number_of_sampled_points():
    model, other = (build(_config("ps_vit_b", count=count).network) for count in (2, 3))
    with pytest.raises(ValueError, match="samples 9 points, the model 4"):
        load_strictly(model, other.state_dict(), "file.pth")


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize("write", [save_weights, lambda model, path: torch.save({"model": model.state_dict()}, path)])
def test_what_is_saved_comes_back_bit_by_bit(tmp_path, stir, name, write):
    config = _config(name)
    model = stir(build(config.network))
    path = tmp_path / ("w.safetensors" if write is save_weights else "w.pth")
    write(model, path)
    loaded = load_model(config, path)
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize("where", ["folder", "downloads"])
def test_an_official_file_is_found_and_remembered(tmp_path, where):
    config = _config("lv_vit_s")
    model = build(config.network)
    torch.save({"state_dict_ema": {}, "state_dict": model.state_dict(), "args": Namespace(lr=1)}, tmp_path / LV_FILE)
    (tmp_path / "empty").mkdir()
    places = {"folder": tmp_path / "empty", "downloads": tmp_path / "empty", where: tmp_path}
    assert fingerprint(load_model(config, **places)) == fingerprint(model)
    torch.save(model.state_dict(), tmp_path / LV_FILE)
    with pytest.raises(ValueError, match=f"{LV_FILE} is tampered or damaged.*checkpoint="):
        load_model(config, **places)


def test_a_folder_that_cannot_be_written_may_hold_official_files(tmp_path, monkeypatch):
    config = _config("lv_vit_s")
    torch.save(build(config.network).state_dict(), tmp_path / LV_FILE)

    def refuse(*_):
        raise ValueError("cannot write")

    monkeypatch.setattr("ttf.models.download.atomic_write", refuse)
    load_model(config, folder=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [LV_FILE]


def test_official_weights_without_a_connection(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise URLError("Name or service not known")

    monkeypatch.setattr("ttf.models.download.urlopen", offline)
    with pytest.raises(ValueError, match=rf"cannot be reached.*by hand from https.* put it at {tmp_path}/{LV_FILE}"):
        load_model(_config("lv_vit_s"), downloads=tmp_path)
    with pytest.raises(ValueError, match=r"no weights of lv_vit_s: fetch it by hand .*checkpoint=FILE"):
        load_model(_config("lv_vit_s"))


def test_mae_takes_fine_tuned_files_alone(tmp_path):
    config = _config("mae_vit_h")
    state = build(config.network).state_dict()
    torch.save({"model": {**state, "mask_token": torch.zeros(1, 1, 32)}}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="pre-trained MAE.*mae_finetuned_vit_huge.pth"):
        load_model(config, tmp_path / "w.pth")


def test_the_doctor_lists_all_models_and_how_to_get_their_weights(tmp_path):
    from hydra import compose, initialize_config_dir

    (tmp_path / LV_FILE).write_bytes(b"")
    half = tmp_path / "imagenet" / "val" / "n01440764"
    half.mkdir(parents=True)
    (half / "ILSVRC2012_val_00000293.JPEG").write_bytes(b"")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        places = [f"paths.{name}={tmp_path}/{name}" for name in ("imagenet", "downloads")]
        findings = {f.what: f for f in examine(compose("eval", [*places, f"paths.weights={tmp_path}"]))}
    assert {f"weights {name}" for name in models()} <= findings.keys()
    assert findings["weights lv_vit_s"].found == str(tmp_path / LV_FILE)
    missing = findings["weights t2t_vit_14"]
    assert missing.found is None
    assert f"put it at {tmp_path}/downloads/81.5_T2T_ViT_14.pth.tar" in missing.remedy
    assert "1 of 1000 classes and 1 of 50000 images" in findings["ImageNet"].remedy
