"""Convert weights of timm's MLP-Mixers (``timm.models.mlp_mixer.MlpMixer``) for ``MixerNetwork``; needs no timm.

With the settings from ``settings_of`` both networks compute the same function. Key by key:

    timm                          MixerNetwork                            shape
    stem.proj                     embedding.projection                    (C, ch, P, P), here (C, ch·P²)
    blocks.N.norm1, norm2         blocks.N.token_norm, channel_norm       (C,)
    blocks.N.mlp_tokens.fc1       blocks.N.token_mixing.0                 (h_t, S)
    blocks.N.mlp_tokens.fc2       blocks.N.token_mixing.2                 (S, h_t)
    blocks.N.mlp_channels.fc1     blocks.N.channel_mixing.0               (h_c, C)
    blocks.N.mlp_channels.fc2     blocks.N.channel_mixing.2               (C, h_c)
    norm, head                    norm, head                              (C,), (classes, C)

each with its ``weight`` and ``bias``. timm's token hidden size is half of the channels (384 in B/16), whatever S is:
here it is ``model.token_expansion`` = 384/196, which the rule rounds back to 384.
"""

from __future__ import annotations

import argparse
import itertools
import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mixersweep.errors import UserError
from mixersweep.families.base import Family
from mixersweep.families.mixers import Pretrainable
from mixersweep.layers import GroupReadout
from mixersweep.runs.files import sha256_of

State = dict[str, Tensor]

NORM_EPS = 1e-6
"""The eps of every LayerNorm in timm's Mixers, which checkpoints do not store."""

HOLDERS = ("state_dict", "model", "model_state_dict")
"""The keys under which training scripts store a state dict in a checkpoint."""

WRAPPERS = ("module.", "_orig_mod.", "model.")
"""The prefixes that wrappers such as DistributedDataParallel and ``torch.compile`` add to all names."""

OUTER = {"stem.proj": "embedding.projection", "norm": "norm", "head": "head"}
INNER = {
    "norm1": "token_norm",
    "mlp_tokens.fc1": "token_mixing.0",
    "mlp_tokens.fc2": "token_mixing.2",
    "norm2": "channel_norm",
    "mlp_channels.fc1": "channel_mixing.0",
    "mlp_channels.fc2": "channel_mixing.2",
}


def from_timm(state: Mapping[str, Tensor]) -> State:
    """Convert timm's state dict to the names and shapes of ``MixerNetwork``; the tensors share their memory.

    Raises ``UserError`` with the first key that timm's MLP-Mixer does not have.
    """
    converted = {}
    for key, value in state.items():
        ours = _renamed(key)
        if key == "stem.proj.weight":
            if value.dim() != 4:
                raise UserError(f"{key}: expects the shape (channels, image channels, P, P), not {_shape(value)}")
            value = value.flatten(1)
        converted[ours] = value
    return converted


def settings_of(state: Mapping[str, Tensor]) -> dict[str, str | int | float]:
    """The settings, as overrides of ``model=mixer``, with which ``MixerNetwork`` matches a timm checkpoint.

    ``data.classes`` is left out if the checkpoint has no head. Raises ``UserError`` with a key that is missing, or
    whose shape implies patches or images that are not square.
    """
    stem, token, channel = (
        _weight(state, name) for name in ("stem.proj", "blocks.0.mlp_tokens.fc1", "blocks.0.mlp_channels.fc1")
    )
    if stem.dim() != 4 or stem.shape[2] != stem.shape[3]:
        raise UserError(f"stem.proj.weight: {_shape(stem)} are no square patches")
    (channels, image_channels, patch_size, _), (token_hidden, tokens) = stem.shape, token.shape
    if math.isqrt(tokens) ** 2 != tokens:
        raise UserError(f"blocks.0.mlp_tokens.fc1.weight: {tokens} patches are no square, and images are square here")
    return {
        "depth": len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
        "tokens": tokens,
        "channels": channels,
        "model.token_expansion": token_hidden / tokens,
        "model.channel_expansion": channel.shape[0] / channels,
        "model.skip_layer": "never",
        "model.norm_eps": NORM_EPS,
        "image_size": math.isqrt(tokens) * patch_size,
        "patch_size": patch_size,
        "data.image_channels": image_channels,
        **({"data.classes": state["head.weight"].shape[0]} if "head.weight" in state else {}),
    }


def read_checkpoint(path: Path, sha256: str) -> State:
    """Read timm's state dict from a ``.safetensors`` or ``torch.save`` file with the given sha256.

    Nothing in the file is executed. Raises a ``UserError`` that names the file if it cannot be read or has another
    sha256.
    """
    named = f"model.pretrained={path}"
    if sha256_of(path, "model.pretrained") != sha256:
        raise UserError(f"{named}: its content is not what the run was started with (sha256 {sha256[:16]}...)")
    try:
        if path.suffix == ".safetensors":
            content: object = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # in which timm's script keeps its arguments
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{named}: cannot be read as a checkpoint ({_first_line(error)})") from None
    if isinstance(content, dict):  # the first as timm's own training script saves it
        content = next((content[key] for key in HOLDERS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{named}: holds no state dict, a mapping of names to tensors")
    return _without_wrappers(content)


def _without_wrappers(state: State) -> State:
    """Strip the prefixes that DistributedDataParallel, ``torch.compile`` and other wrappers add to all names."""
    for prefix in itertools.chain.from_iterable(itertools.repeat(WRAPPERS, len(WRAPPERS))):
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def start_from(network: nn.Module, settings: Family) -> list[str]:
    """Load the weights of ``model.pretrained`` into a network, if it is set; returns notes for the user.

    A head of another shape keeps its initial weights. Raises ``UserError`` with the first key that does not fit.
    """
    if not isinstance(settings, Pretrainable) or settings.pretrained is None or settings.pretrained_sha256 is None:
        return []
    named = f"model.pretrained={settings.pretrained}"
    state = read_checkpoint(Path(settings.pretrained), settings.pretrained_sha256)
    own = network.state_dict()
    notes = []
    try:
        weights = from_timm(state)
    except UserError as error:
        raise UserError(f"{named}: {error}") from None
    theirs, ours = weights.get("head.weight"), own["head.weight"]
    grouped = isinstance(network.get_submodule("head"), GroupReadout)  # whose weights mean something else
    if theirs is None or theirs.shape != ours.shape or grouped:
        shape = "not there" if theirs is None else _shape(theirs) + " of means" * grouped
        notes.append(f"{named}: its head is {shape}, not {_shape(ours)}; this run starts with a fresh one")
        weights |= {key: own[key] for key in ("head.weight", "head.bias")}
    eps = {layer.eps for layer in network.modules() if isinstance(layer, nn.LayerNorm)} - {NORM_EPS}
    if eps:
        notes.append(f"{named}: was trained with model.norm_eps={NORM_EPS:g}, not {max(eps):g}")
    for key in [*own, *weights]:
        if key not in weights:
            raise UserError(f"{named}: has no {key}; {_fits(state)}")
        if key not in own:
            raise UserError(f"{named}: has {key}, which this network has not; {_fits(state)}")
        if own[key].shape != weights[key].shape:
            raise UserError(
                f"{named}: its {key} is {_shape(weights[key])}, this network's {_shape(own[key])}; {_fits(state)}"
            )
    network.load_state_dict(weights)
    return notes


def _renamed(key: str) -> str:
    layer, _, kind = key.rpartition(".")
    block = re.match(r"blocks\.\d+\.", layer)
    names, start = (INNER, block.group()) if block else (OUTER, "")
    renamed = names.get(layer[len(start) :])
    if renamed is None or kind not in ("weight", "bias"):
        raise UserError(f"{key}: timm's MlpMixer has no such weights")
    return f"{start}{renamed}.{kind}"


def _weight(state: Mapping[str, Tensor], layer: str) -> Tensor:
    weight = state.get(f"{layer}.weight")
    if weight is None:
        raise UserError(f"{layer}.weight: missing, so this is no MlpMixer of timm's")
    return weight


def _fits(state: Mapping[str, Tensor]) -> str:
    """A hint for error messages: the overrides with which a checkpoint would fit."""
    try:
        settings = settings_of(state)
    except UserError as error:
        return str(error)
    wanted = {key: value for key, value in settings.items() if key not in ("data.classes", "model.norm_eps")}
    return "it fits " + " ".join(f"{key}={value}" for key, value in wanted.items())


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
