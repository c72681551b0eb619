"""Loading weights: what is accepted, and one clear error for everything else."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from ttf.models.weights import file_digest, fingerprint, load_model, load_strictly, read_checkpoint, save_weights


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


def test_pickled_code_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="evil.pth"):
        read_checkpoint(tmp_path / "evil.pth")


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


def test_no_connection_is_one_clear_error(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    network = {"_target_": "timm.create_model", "model_name": "vit_tiny_patch16_224.augreg_in21k_ft_in1k"}
    config = OmegaConf.create({"name": "vit_ti_augreg", "weights": "hub", "network": network})
    with pytest.raises(ValueError, match=r"could not be downloaded.*checkpoint=FILE"):
        load_model(config)


def test_a_folder_of_weights_comes_before_the_hub(tmp_path):
    import timm

    torch.manual_seed(1)
    small = {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3}
    save_weights(timm.create_model("vit_tiny_patch16_224", **small), tmp_path / "vit_tiny_patch16_224.safetensors")
    network = {"_target_": "timm.create_model", "model_name": "vit_tiny_patch16_224", **small}
    config = OmegaConf.create({"name": "vit_ti_augreg", "weights": "hub", "network": network})
    assert len(load_model(config, folder=tmp_path).blocks) == 2
