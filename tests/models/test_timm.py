"""MLP-Mixers against timm's: the same weights give the same logits and gradients, and a checkpoint is a start."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from timm.models.mlp_mixer import MlpMixer
from torch import nn

from mixersweep import budget
from mixersweep.compose import config_of
from mixersweep.config import architecture, parse
from mixersweep.errors import UserError
from mixersweep.families.base import ImageFacts
from mixersweep.models import build
from mixersweep.models.mixer import MixerNetwork
from mixersweep.models.parts import StructureSeed
from mixersweep.models.timm import from_timm, settings_of, start_from
from mixersweep.runs import RunDirectory, solve
from mixersweep.training.loop import Training
from mixersweep.training.member import Member
from mixersweep.training.parallel import World
from mixersweep.training.signals import StopSignals
from mixersweep.training.trainer import train

ODD = {"num_classes": 7, "img_size": 24, "patch_size": 8, "embed_dim": 20, "num_blocks": 2, "mlp_ratio": (0.5, 3.0)}
WIDE = {"num_classes": 5, "img_size": 15, "patch_size": 3, "embed_dim": 13, "num_blocks": 3, "mlp_ratio": (0.4, 1.7)}
GREY = {"num_classes": 10, "img_size": 32, "patch_size": 8, "embed_dim": 12, "num_blocks": 1, "in_chans": 1}
B16 = {"img_size": 224, "patch_size": 16, "embed_dim": 768, "mlp_ratio": (0.5, 4.0)}
TIMM = {"odd": ODD, "wide": WIDE, "grey": GREY, "b16 of one block": {**B16, "num_blocks": 1}}


def timm_mixer(sizes: dict, seed: int = 0) -> MlpMixer:
    """timm's network with every weight, bias and norm drawn: its own head starts at zero."""
    network = MlpMixer(**sizes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            std = 0.3 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
            parameter.add_(torch.randn(parameter.shape, generator=generator) * std)
    return network


def ours_of(state: dict[str, torch.Tensor], *more: str) -> nn.Module:
    """The network of the settings that a timm checkpoint means, with its weights."""
    meant = settings_of(state)
    data = "cifar10" if meant["data.image_channels"] == 3 else "fashion_mnist_10k"
    settings = [f"{key}={value}" for key, value in meant.items()]
    config = config_of(["model=mixer", f"data={data}", *settings, "data.native_size=1", *more])
    network = build(config, architecture(config))
    network.load_state_dict(from_timm(state))
    return network


def pictures(sizes: dict, count: int = 2) -> torch.Tensor:
    shape = (count, sizes.get("in_chans", 3), sizes["img_size"], sizes["img_size"])
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", TIMM)
@torch.no_grad()
def test_the_same_weights_give_timms_logits(name: str, count: int) -> None:
    """In float64 to rounding. In fp32 ours are about as far from those as timm's: what rounds is the same, and how
    often; only its order is another.
    """
    theirs = timm_mixer(TIMM[name])
    ours = ours_of(theirs.state_dict())
    images = pictures(TIMM[name], count)
    found, like = ours(images), theirs(images)
    expected = theirs.double()(images.double())
    assert expected.std() > 0.1
    torch.testing.assert_close(ours.double()(images.double()), expected, rtol=1e-10, atol=1e-10)
    assert float((found - expected).norm()) < 4 * float((like - expected).norm())


@pytest.mark.parametrize("name", ["odd", "wide", "grey"])
def test_the_same_weights_give_timms_gradients(name: str) -> None:
    theirs = timm_mixer(TIMM[name]).double()
    ours = ours_of(theirs.state_dict()).double()
    images = pictures(TIMM[name]).double().requires_grad_()
    labels = torch.tensor([0, 3])

    def gradients(network: nn.Module) -> dict[str, torch.Tensor]:
        parameters = dict(network.named_parameters())
        loss = nn.functional.cross_entropy(network(images), labels)
        found = torch.autograd.grad(loss, [images, *parameters.values()])
        return dict(zip(["images", *parameters], found, strict=True))

    expected, found = gradients(theirs), gradients(ours)
    torch.testing.assert_close(found.pop("images"), expected.pop("images"), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found, from_timm(expected), rtol=1e-10, atol=1e-12)


def test_the_same_weights_give_timms_logits_on_images_that_are_not_square() -> None:
    """The program's images are square; the network itself takes any that its patches fill."""
    theirs = timm_mixer({**ODD, "img_size": (24, 40)}).double()
    request = budget.Request(
        structure="kronecker",
        hidden=True,
        tokens=15,
        channels=20,
        token_expansion=10 / 15,
        channel_expansion=3.0,
        depth=2,
        patches=15,
        patch_values=192,
        classes=7,
        skip_layer="never",
    )
    settings = config_of(["model=mixer", "model.norm_eps=1e-6"]).model
    ours = MixerNetwork(settings, budget.solve(request), images=ImageFacts(3, 32, 8, 7), structure=StructureSeed(0))
    ours.double().load_state_dict(from_timm(theirs.state_dict()))
    images = torch.randn(2, 3, 24, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-10, atol=1e-10)
    with pytest.raises(UserError, match="15 patches are no square"):
        settings_of(theirs.state_dict())


def test_the_settings_of_b16_are_those_of_the_paper_and_the_rule_finds_its_sizes() -> None:
    with torch.device("meta"):
        state = MlpMixer(**B16, num_blocks=12).state_dict()
    settings = settings_of(state)
    assert settings == {
        "depth": 12,
        "tokens": 196,
        "channels": 768,
        "model.token_expansion": 384 / 196,
        "model.channel_expansion": 4.0,
        "model.skip_layer": "never",
        "model.norm_eps": 1e-6,
        "image_size": 224,
        "patch_size": 16,
        "data.image_channels": 3,
        "data.classes": 1000,
    }
    config = config_of(["model=mixer", "data=cifar10", *(f"{key}={value}" for key, value in settings.items())])
    sizes = architecture(config)
    assert (sizes.token_hidden, sizes.channel_hidden, sizes.patches) == (384, 3072, 196)
    assert sizes.connections == 260112384  # Omega 2.601e8
    assert sizes.parameters == sum(value.numel() for value in state.values()) == 59880472
    with torch.device("meta"):
        network = MixerNetwork(config.model, sizes, images=ImageFacts(3, 224, 16, 1000), structure=StructureSeed(0))
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    assert shapes == {key: value.shape for key, value in from_timm(state).items()}


def test_every_hidden_size_survives_its_way_through_an_expansion() -> None:
    for size in (1, 3, 7, 49, 196, 197, 768, 1023):
        for hidden in (1, 2, 5, 98, 384, 385, 3071, 4096):
            expansion = budget.expansion.exact(hidden / size)
            assert budget.terms.scaled(expansion, size) == hidden


# --- refusals of the converters --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        "stem.norm.weight",
        "blocks.0.norm1.alpha",
        "blocks.0.linear_tokens.weight",
        "blocks.x.norm1.weight",
        "blocks.0.head.weight",
        "norm1.weight",
        "cls_token",
    ],
)
def test_from_timm_names_the_key_that_does_not_fit(key: str) -> None:
    state = {**timm_mixer(ODD).state_dict(), key: torch.zeros(3)}
    with pytest.raises(UserError, match=re.escape(f"{key}: timm's MlpMixer has no such weights")):
        from_timm(state)


def test_from_timm_refuses_a_stem_that_is_no_convolution() -> None:
    with pytest.raises(UserError, match=r"stem.proj.weight: expects the shape .*, not \(20, 192\)"):
        from_timm({"stem.proj.weight": torch.zeros(20, 192)})


def test_a_checkpoint_without_a_head_says_nothing_of_classes() -> None:
    state = timm_mixer({**ODD, "num_classes": 0}).state_dict()
    whole = settings_of(timm_mixer(ODD).state_dict())
    assert whole.pop("data.classes") == 7
    assert settings_of(state) == whole


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"stem.proj.weight": None}, "stem.proj.weight: missing, so this is no MlpMixer of timm's"),
        ({"blocks.0.mlp_tokens.fc1.weight": None}, "blocks.0.mlp_tokens.fc1.weight: missing"),
        ({"stem.proj.weight": torch.zeros(20, 3, 8, 4)}, "stem.proj.weight: (20, 3, 8, 4) are no square patches"),
    ],
)
def test_settings_of_names_what_is_missing(changed: dict, message: str) -> None:
    state = {**timm_mixer(ODD).state_dict(), **changed}
    with pytest.raises(UserError, match=re.escape(message)):
        settings_of({key: value for key, value in state.items() if value is not None})


# --- model.pretrained ------------------------------------------------------------------------------------------------

GREY_SETTINGS = ["tokens=16", "channels=12", "depth=1", "patch_size=8", "model.norm_eps=1e-6", "expansion=auto"]
FINE = ["model=mixer", *GREY_SETTINGS, "model.token_expansion=0.375", "model.channel_expansion=4"]
RUN = [*FINE, "epochs=1", "batch_size=3000", "threads=1", "tracking=none", "augment=none", "optim.lr=1e-6"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "grey.pt"
    torch.save(timm_mixer(GREY).state_dict(), path)
    return path


def notes_of(*overrides: str) -> tuple[list[str], nn.Module]:
    run = solve(config_of(list(overrides)))
    network = build(run.config, run.architecture)
    return start_from(network, run.config.model), network


def save(state: dict, path: Path, kind: str) -> Path:
    path = path.with_suffix(".safetensors" if kind == "safetensors" else ".pth")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if kind == "wrapped" else state, path)
    return path


@pytest.mark.parametrize("kind", ["safetensors", "plain", "wrapped"])
@pytest.mark.parametrize("family", [["model=mixer"], ["model=pk", "model.hidden=true"]], ids=lambda f: f[0])
def test_a_network_starts_from_a_checkpoint_of_timms(family: list[str], kind: str, tmp_path: Path) -> None:
    theirs = timm_mixer(GREY).eval()
    path = save(theirs.state_dict(), tmp_path / "grey", kind)
    notes, network = notes_of(*FINE, *family, f"model.pretrained={path}")
    assert notes == []
    torch.testing.assert_close(network(pictures(GREY)), theirs(pictures(GREY)), rtol=1e-5, atol=1e-5)


def test_another_head_stays_fresh_and_says_so(tmp_path: Path) -> None:
    state = timm_mixer({**GREY, "num_classes": 3}).state_dict()
    _, fresh = notes_of(*FINE)
    for missing in (False, True):
        kept = {key: value for key, value in state.items() if not (missing and key.startswith("head."))}
        path = save(kept, tmp_path / f"headless {missing}", "plain")
        notes, network = notes_of(*FINE, f"model.pretrained='{path}'")
        (note,) = notes
        assert f"its head is {'not there' if missing else '(3, 12)'}, not (10, 12)" in note
        assert torch.equal(network.head.weight, fresh.head.weight)
        assert torch.equal(network.norm.weight, state["norm.weight"])


def test_another_norm_eps_is_noted(checkpoint: Path) -> None:
    notes, _ = notes_of(*FINE, f"model.pretrained={checkpoint}", "model.norm_eps=1e-5")
    assert notes == [f"model.pretrained={checkpoint}: was trained with model.norm_eps=1e-06, not 1e-05"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tokens=9"], "has no blocks.0.skip.0.map.weight; it fits depth=1 tokens=16 channels=12 "),
        (["model.bias=false"], "has blocks.0.token_mixing.0.bias, which this network has not; it fits "),
        (["channels=14"], "its embedding.projection.weight is (12, 64), this network's (14, 64); it fits "),
        (["model.token_expansion=1"], "its blocks.0.token_mixing.0.weight is (6, 16), this network's (16, 16); "),
        (["depth=2"], "has no blocks.1.token_norm.weight; it fits depth=1 "),
        (["model=pk", "model.hidden=false", "model.token_expansion=auto", "model.channel_expansion=auto"], "its block"),
        (["model=pk", "model.hidden=true", "model.tied=false"], "is (6, 16), this network's (12, 6, 16); it fits "),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_with_what_it_fits(
    overrides: list[str], message: str, checkpoint: Path
) -> None:
    expansion = ["expansion=1"] if "model.hidden=false" in overrides else []
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        notes_of(*FINE, f"model.pretrained={checkpoint}", *overrides, *expansion)
    assert str(refused.value).startswith(f"model.pretrained={checkpoint}: ")
    assert "model.token_expansion=0.375 model.channel_expansion=4.0" in str(refused.value)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    for number, (suffix, content, reason) in enumerate(
        [
            (".pt", b"", "cannot be read as a checkpoint"),
            (".pt", b"hello world", "cannot be read as a checkpoint"),
            (".pth", b"PK\x03\x04broken", "cannot be read as a checkpoint"),
            (".safetensors", b"no", "cannot be read as a checkpoint"),
        ]
    ):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(content)
        with pytest.raises(UserError, match=reason) as refused:
            notes_of(*FINE, f"model.pretrained={path}")
        assert "\n" not in str(refused.value)
    other = tmp_path / "other.pt"
    torch.save([1, 2], other)
    with pytest.raises(UserError, match="holds no state dict"):
        notes_of(*FINE, f"model.pretrained={other}")
    torch.save({"conv1.weight": torch.zeros(3)}, other)
    with pytest.raises(UserError, match=r"conv1.weight: timm's MlpMixer has no such weights"):
        notes_of(*FINE, f"model.pretrained={other}")


def test_a_missing_file_is_refused_before_there_is_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.pretrained=.*nowhere.pt: cannot be read: No such file"):
        solve(config_of([*FINE, f"model.pretrained={tmp_path / 'nowhere.pt'}"]))


def test_the_experiment_is_the_content_of_the_file_and_not_its_path(checkpoint: Path, tmp_path: Path) -> None:
    def solved(path: Path, *more: str):
        return solve(config_of([*FINE, f"model.pretrained={path}", *more]))

    copied, other = tmp_path / "copied.pt", tmp_path / "other.pt"
    copied.write_bytes(checkpoint.read_bytes())
    torch.save(timm_mixer(GREY, seed=1).state_dict(), other)
    run = solved(checkpoint)
    assert run.fingerprint == solved(copied).fingerprint
    assert run.fingerprint == solve(run.config).fingerprint
    assert len({run.fingerprint, solved(other).fingerprint, solve(config_of(FINE)).fingerprint}) == 3
    sha256 = run.config.model.pretrained_sha256
    assert solved(copied, f"model.pretrained_sha256={sha256}").fingerprint == run.fingerprint
    with pytest.raises(UserError, match=rf"model.pretrained_sha256={sha256}: the sha256 of .*other.pt is "):
        solved(other, f"model.pretrained_sha256={sha256}")
    with pytest.raises(UserError, match=r"is of model\.pretrained, which is null"):
        solve(config_of([*FINE, f"model.pretrained_sha256={sha256}"]))
    torch.save(timm_mixer(GREY, seed=2).state_dict(), checkpoint)
    with pytest.raises(UserError, match="its content is not what the run was started with"):
        start_from(build(run.config, run.architecture), run.config.model)
    first, second = RunDirectory.create(run, tmp_path / "runs"), RunDirectory.create(solved(copied), tmp_path / "runs")
    assert first.path == second.path
    assert second.run.config.model.pretrained == str(copied)  # the file has moved, the experiment has not
    assert RunDirectory.open(first.path).run.config == run.config


def test_a_run_frozen_before_the_setting_existed_is_still_read() -> None:
    values = dataclasses.asdict(config_of(["model=mixer"]))
    del values["model"]["pretrained"], values["model"]["pretrained_sha256"]
    assert parse(values) == config_of(["model=mixer"])


def test_a_run_starts_from_the_checkpoint_trains_and_needs_the_file_no_more(checkpoint: Path, tmp_path: Path) -> None:
    said: list[str] = []
    run = solve(config_of([*RUN, f"model.pretrained={checkpoint}"]))
    directory = RunDirectory.create(run, tmp_path / "runs")

    class NeverLost:
        def check(self) -> None:
            pass

    training = Training([Member(directory, NeverLost())], StopSignals(), said.append, World())  # type: ignore[arg-type]
    start = from_timm(torch.load(checkpoint, weights_only=True))
    state = training.learner.network.state_dict()
    assert all(torch.equal(state[key], start[key]) for key in start)

    train(directory, StopSignals(), said.append)
    assert directory.status().state == "completed"
    trained = torch.load(directory.checkpoint, weights_only=True)["model"]
    moved = [float((trained[key] - start[key]).abs().max()) for key in start]
    assert max(moved) > 0
    assert max(moved) < 1e-3  # three steps at lr=1e-6: it began at the checkpoint
    checkpoint.unlink()
    member = Member(RunDirectory.open(directory.path), NeverLost())  # type: ignore[arg-type]
    member.load(said.append)
    again = Training([member], StopSignals(), said.append, World())
    assert torch.equal(again.learner.network.head.weight, trained["head.weight"])
    assert [line for line in said if not line.startswith("on a CPU")] == ["going on after epoch 1 of 1"]
