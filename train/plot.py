"""The curves of a run as a picture."""

from pathlib import Path
from typing import Any

from dsd_jax.extras import require
from dsd_jax.files import replacing
from dsd_jax.train.metrics import read_metrics

__all__ = ["PANELS", "plot_run"]

# Title, axis, and the metrics that are drawn together with their labels.
PANELS: tuple[tuple[str, str, dict[str, str]], ...] = (
    (
        "Loss",
        "mean squared error",
        {"loss": "train", "eval/loss": "held out"},
    ),
    (
        "Loss by frame",
        "mean squared error",
        {
            "loss_reference": "reference",
            "loss_target": "target",
            "eval/loss_reference": "reference, held out",
            "eval/loss_target": "target, held out",
        },
    ),
    ("Gradient norm", "before clipping", {"grad_norm": ""}),
    ("Learning rate", "", {"learning_rate": ""}),
    ("Speed", "samples per second and device", {"samples_per_second_per_device": ""}),
    (
        "Time of a step",
        "seconds",
        {"step_seconds": "step", "data_wait_seconds": "of it waiting for data"},
    ),
)


def plot_run(run: str | Path, path: Path) -> None:
    """Draws loss, gradient norm, learning rate and speed over steps.

    Args:
        run: its folder.
        path: PNG to write.

    Raises:
        UserError: no run there, nothing logged yet, or matplotlib is not installed.
    """
    rows = read_metrics(run)
    require("plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(12, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3).ravel()
    for own, (title, unit, names) in zip(axes, PANELS, strict=True):
        _draw(own, rows, title, unit, names)
    figure.suptitle(Path(run).name)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def _draw(
    axes: Any, rows: list[dict[str, float]], title: str, unit: str, names: dict[str, str]
) -> None:
    for name, label in names.items():
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            steps, values = zip(*points, strict=True)
            held_out = name.startswith("eval/")
            axes.plot(
                steps,
                values,
                label=label or None,
                marker="o" if held_out or len(points) < 30 else "",
                markersize=3,
                linewidth=1.2,
                linestyle="--" if held_out else "-",
            )
    axes.set_title(title)
    axes.set_ylabel(unit)
    axes.set_xlabel("step")
    axes.grid(visible=True, alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
