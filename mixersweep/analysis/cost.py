"""``analyze cost``: memory, FLOPs and training time of networks (Hayase & Karakida 2024, Table S.3).

Memory is counted as the weights are stored (nonzeros, and the indices and permutations of their structure), and as
masked dense matrices would take it, each with a mask of its size, which is how the paper stores its SW-MLPs. Time is
that of an epoch's training steps, measured by the trainer on the run's own images (``training/timing.py``).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mixersweep.analysis.output import tracked
from mixersweep.bench.harness import peak_bytes
from mixersweep.data.splits import open_splits
from mixersweep.layers import SparseMap, SparseWeights
from mixersweep.models import build
from mixersweep.runs import Run
from mixersweep.training.environment import left_as_found
from mixersweep.training.learner import Learner
from mixersweep.training.parallel import World
from mixersweep.training.steps import Steps
from mixersweep.training.timing import time_training

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
FLOAT_BYTES = 4


def stored_bytes(network: nn.Module) -> tuple[int, int]:
    """The bytes of a network's parameters, and of its structure: indices and permutations."""
    parameters = sum(p.numel() * p.element_size() for p in network.parameters())
    return parameters, sum(b.numel() * b.element_size() for b in network.buffers())


def masked_dense_bytes(network: nn.Module) -> int:
    """The bytes of a network's parameters in float32 if each sparse map were a dense matrix with a mask of its size."""
    total = sum(p.numel() for p in network.parameters())
    for layer in network.modules():
        if isinstance(layer, SparseMap):
            entries = layer.in_width * layer.out_width
            if layer.connections < entries or isinstance(layer, SparseWeights):
                total += 2 * entries - layer.weight.numel()
    return total * FLOAT_BYTES


@dataclass(frozen=True)
class Training:
    """The training steps of a run on its own data, to be timed."""

    run: Run

    def __call__(self, device: torch.device) -> Callable[[], object]:
        """Set up training on a device and return a function that does one step."""
        steps, learner = self._parts(device)
        endless = itertools.chain.from_iterable(steps.epoch(epoch) for epoch in itertools.count(1))
        return lambda: learner.step(next(endless))

    def _parts(self, device: torch.device) -> tuple[Steps, Learner]:
        config, world = self.run.config, World()
        splits = open_splits(config, device)
        storage = getattr(config.model, "storage", "auto")
        learner = Learner(self.run, device, world, storage)
        learner.train()
        return Steps(config, splits.train, world), learner


def analyze(
    runs: Mapping[str, Run], device: torch.device, *, measured: bool = True
) -> tuple[dict[str, Any], list[Row]]:
    """Count and measure the cost of each named run, one row each; returns the document and the rows.

    Without ``measured`` no training step is run, and there are only the counted values.
    """
    rows: list[Row] = []
    alike: Row = {"compile": False, "engine": "eager", "device": str(device), "threads": torch.get_num_threads()}
    for name, given in tracked(list(runs.items()), "cost"):
        run = dataclasses.replace(given, config=dataclasses.replace(given.config, **alike))
        sizes = run.architecture
        network = build(run.config, sizes)
        parameters, structure = stored_bytes(network)
        row: Row = {
            "network": name,
            "width": sizes.width,
            "connections": sizes.connections,
            "parameters": sizes.parameters,
            "weight_bytes": parameters,
            "structure_bytes": structure,
            "masked_dense_bytes": masked_dense_bytes(network),
            "flops_per_image": sizes.flops_per_image,
        }
        del network
        if measured:
            with left_as_found():
                timed = time_training(run)
            row |= {
                "seconds_per_epoch": timed.training,
                "timed_steps": timed.steps,
                "peak_memory_bytes": peak_bytes(Training(run), device),
                "batch_size": run.config.batch_size,
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
                "threads": torch.get_num_threads(),
            }
        rows.append(row)
    return {"networks": rows}, rows


def draw(document: Mapping[str, Any], out: Path) -> list[Path]:
    """Draw bars of stored bytes beside masked dense, FLOPs and, where measured, time and memory; returns the paths."""
    from mixersweep.figures import GREY, draw_panels, looks, ticked

    rows = document["networks"]
    names = [row["network"] for row in rows]
    look = looks([(name, name.split()[0]) for name in names])
    positions = list(range(len(rows)))[::-1]

    def bars(key: str, label: str, scale: float, second: str | None = None) -> Any:
        def panel(axes: Axes) -> None:
            for y, row in zip(positions, rows, strict=True):
                value = row[key] / scale
                axes.barh(y, value, height=0.6, color=look[row["network"]].colour)
                text = ticked(float(f"{value:.3g}"))
                if second is not None:
                    other = row[second] / scale
                    axes.plot([value, other], [y, y], color=GREY, linewidth=1, zorder=0)
                    axes.plot([other], [y], marker="|", markersize=12, color=GREY)
                    text += f", masked dense {ticked(float(f'{other:.3g}'))}"
                axes.annotate(text, (0.99, y + 0.33), xycoords=("axes fraction", "data"), ha="right", fontsize=7)
            axes.set_xscale("log")
            axes.set_yticks(positions, names, fontsize=8)
            axes.set_ylim(-0.6, len(rows) - 0.3)
            axes.set_xlabel(label)
            axes.grid(False, axis="y")

        return panel

    panels = [bars("weight_bytes", "weights in MB, as stored", 1e6, "masked_dense_bytes")]
    panels.append(bars("flops_per_image", "MFLOPs per image, forward", 1e6))
    if rows and "seconds_per_epoch" in rows[0]:
        panels.append(bars("seconds_per_epoch", "training seconds per epoch, measured", 1))
        panels.append(bars("peak_memory_bytes", "peak memory of training in MB, measured", 1e6))
    high = 1.2 + 0.5 * len(rows)
    return draw_panels(out, "cost", "Cost of networks", panels, wide=5.2, high=high, columns=2)


def named(runs: Sequence[tuple[str, Run]]) -> dict[str, Run]:
    """Give runs distinct labels, with a number where a label repeats."""
    found: dict[str, Run] = {}
    for label, run in runs:
        name, number = label, 2
        while name in found:
            name, number = f"{label} ({number})", number + 1
        found[name] = run
    return found
