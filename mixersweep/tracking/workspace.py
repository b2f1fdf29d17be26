"""Save a view of a W&B project: its runs grouped by model and width, with panels for accuracy, loss, sizes and speed.

It uses W&B's package ``wandb-workspaces``, an optional dependency. W&B cannot draw mean and error against a setting, so
the first section shows the figures of the sweeps' reports.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from mixersweep.errors import MixersweepError, UserError
from mixersweep.tracking import processes
from mixersweep.tracking.identity import Destination

NAME = "effective width against accuracy"


def require() -> None:
    """Raise ``UserError`` where ``wandb-workspaces`` is not installed, saying how to install it."""
    if find_spec("wandb_workspaces") is None:
        raise UserError("a workspace needs wandb-workspaces: pip install 'mixersweep[workspace]'")


def save(destination: Destination, experiments: Sequence[str], view: str | None) -> str:
    """Save the view, replacing the one at the URL ``view`` if given; returns its URL.

    With ``experiments`` it shows only their runs. Raises ``UserError`` without an API key and ``MixersweepError``
    where W&B does not accept it.
    """
    require()
    processes.prepare_environment(os.environ)
    import wandb
    from pydantic import ValidationError
    from wandb.errors import UsageError

    from mixersweep.tracking.client import first_line, user_error

    ws: Any = import_module("wandb_workspaces.workspaces")
    try:
        entity = destination.entity or wandb.Api().default_entity
        if entity is None:
            raise UserError("this key has no default entity; name one with --entity")
        made = ws.Workspace.from_url(view) if view else new(entity, destination.project)
        made.name = NAME if not experiments else f"{NAME}: {', '.join(experiments)}"
        made.sections = sections()
        made.settings = ws.WorkspaceSettings(x_axis="epoch", max_runs=100)
        made.runset_settings = runset(experiments)
        return str(made.save().url)
    except UserError:
        raise
    except UsageError as error:
        raise user_error(error) from None
    except ValidationError as error:
        raise UserError(f"W&B: {first_line(error)}") from None
    except Exception as error:  # the packages raise many kinds, and a plain Exception for GraphQL errors
        raise MixersweepError(f"W&B did not accept the workspace: {' '.join(str(error).split())[:300]}") from error


def new(entity: str, project: str) -> Any:
    """Create a view, not saved yet, with a name whose URL opens it.

    The package would draw 11 letters and digits and, to form the URL, remove every ``nw-`` from ``nw-{letters}-v``. So
    one name in 1,296, whose letters end in ``nw``, gets the URL of a view that does not exist (wandb-workspaces
    0.4.13). Hexadecimal digits cannot end so.
    """
    ws: Any = import_module("wandb_workspaces.workspaces")
    made = ws.Workspace(entity=entity, project=project)
    made._internal_name = f"nw-{uuid.uuid4().hex[:11]}-v"
    return made


def runset(experiments: Sequence[str]) -> Any:
    """The set of runs to show, grouped by model and width."""
    ws: Any = import_module("wandb_workspaces.workspaces")
    return ws.RunsetSettings(
        filters=[ws.Config("experiment").isin(list(experiments))] if experiments else [],
        groupby=[ws.Config("model"), ws.Config("width")],
        order=[ws.Ordering(ws.Config("width"), ascending=True)],
        pinned_columns=["config:width", "config:connections", "config:seed", "summary:test_accuracy"],
    )


def sections() -> list[Any]:
    """The sections of the view: figures of reports, accuracy, loss, structure and speed."""
    wr: Any = import_module("wandb_workspaces.reports.v2")
    ws: Any = import_module("wandb_workspaces.workspaces")

    def against_width(metric: str, title: str) -> Any:
        x = wr.Config("width")
        return wr.ScatterPlot(title=title, x=x, y=wr.SummaryMetric(metric), log_x=True, running_ymean=True)

    def over_epochs(metric: str, title: str) -> Any:
        return wr.LinePlot(title=title, x="epoch", y=[metric], title_x="epoch")

    def bars(metric: str, title: str) -> Any:
        return wr.BarPlot(title=title, metrics=[metric], groupby_aggfunc="mean", groupby_rangefunc="stddev")

    columns = ("tokens", "channels", "width", "depth", "connections", "density", "parameters")
    structure = [wr.ParallelCoordinatesPlotColumn(wr.Config(name)) for name in columns]
    structure.append(wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric("test_accuracy")))
    figures = [f"figures/{name}" for name in ("width_vs_accuracy", "channels_over_tokens_vs_accuracy")]
    return [
        ws.Section(
            name="report",
            panels=[wr.MediaBrowser(title="effective width against accuracy", media_keys=figures, num_columns=2)],
            is_open=True,
        ),
        ws.Section(
            name="accuracy",
            panels=[
                against_width("test_accuracy", "test accuracy against effective width"),
                over_epochs("test_accuracy", "test accuracy"),
                over_epochs("validation_accuracy", "validation accuracy"),
                over_epochs("train_accuracy", "training accuracy"),
                bars("test_accuracy", "test accuracy by model and width"),
            ],
            is_open=True,
        ),
        ws.Section(
            name="loss",
            panels=[
                against_width("train_loss", "training loss against effective width"),
                *(over_epochs(f"{split}_loss", f"{split} loss") for split in ("train", "validation", "test")),
                over_epochs("learning_rate", "learning rate"),
            ],
            is_open=True,
        ),
        ws.Section(
            name="structure",
            panels=[
                wr.ParallelCoordinatesPlot(title="sizes and test accuracy", columns=structure),
                against_width("density", "density against effective width"),
                against_width("parameters", "parameters against effective width"),
            ],
        ),
        ws.Section(
            name="speed",
            panels=[
                against_width("images_per_second", "images per second against effective width"),
                over_epochs("images_per_second", "images per second"),
                bars("seconds", "seconds of training"),
                bars("peak_memory_bytes", "peak memory, bytes"),
            ],
        ),
    ]
