"""Extras: what they hold, and the line that says that one is missing."""

import sys
import tomllib
from pathlib import Path

import pytest
from etils import epath

from dsd_jax import extras
from dsd_jax.convert.hub import check_scheme
from dsd_jax.data.make.overview import plot_yields
from dsd_jax.errors import UserError
from dsd_jax.quickstart.torch_check import largest_difference
from dsd_jax.rows import open_table
from dsd_jax.topology import Topology, devices_of
from dsd_jax.train.metrics import METRICS, Log
from dsd_jax.train.plot import plot_run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch):
    """Makes an extra's modules look as if they were not installed."""

    def hide(extra: str) -> None:
        for module in extras.EXTRAS[extra].modules:
            monkeypatch.setitem(sys.modules, module, None)

    return hide


def test_the_extras_are_those_of_the_package():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = set(declared["optional-dependencies"])
    assert set(extras.EXTRAS) == named - {"cuda", "dev", "app"}  # app is another name of serve


def test_plain_packages_need_no_extra():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    plain = {line.partition(">")[0].partition("[")[0] for line in declared}
    assert plain >= {
        "jax", "flax", "optax", "orbax-checkpoint", "transformers", "grain", "openai",
        "google-genai", "pillow",
    }  # fmt: skip
    assert not plain & {"arro3-io", "diffusers", "matplotlib", "tensorboardX", "torch"}


def test_the_message_names_what_is_missing_and_the_command(without):
    without("parquet")
    assert extras.missing("parquet") == ["arro3.core", "arro3.io"]
    with pytest.raises(UserError) as caught:
        extras.require("parquet")
    assert str(caught.value) == (
        "reading Parquet tables needs arro3.core and arro3.io; "
        "install it with: pip install 'dsd-jax[parquet]'"
    )


def test_parquet_needs_its_extra(without, tmp_path: Path):
    (tmp_path / "pairs.parquet").write_bytes(b"PAR1PAR1")
    without("parquet")
    with pytest.raises(UserError, match=r"dsd-jax\[parquet\]"):
        open_table(tmp_path / "pairs.parquet")


def test_curves_need_their_extra(without, tmp_path: Path):
    (tmp_path / METRICS).write_text('{"step": 1, "loss": 0.5}\n')
    without("plot")
    with pytest.raises(UserError, match=r"needs matplotlib; .*dsd-jax\[plot\]"):
        plot_run(tmp_path, tmp_path / "curves.png")


def test_plots_of_a_dataset_in_the_making_need_their_extra(without, tmp_path: Path):
    without("plot")
    with pytest.raises(UserError, match=r"needs matplotlib; .*dsd-jax\[plot\]"):
        plot_yields(tmp_path, tmp_path / "yields.png")


def test_event_files_need_their_extra(without, tmp_path: Path):
    without("tensorboard")
    with pytest.raises(UserError, match=r"needs tensorboardX; .*dsd-jax\[tensorboard\]"):
        Log(tmp_path, -1, tensorboard=True)
    with Log(tmp_path, -1) as log:
        log.metrics(1, {"loss": 0.5})


def test_buckets_need_their_extra(without):
    without("gcs")
    with pytest.raises(UserError, match=r"needs gcsfs; .*dsd-jax\[gcs\]"):
        check_scheme(epath.Path("gs://bucket/run"))


def test_tpu_topologies_need_their_extra(without):
    without("tpu")
    with pytest.raises(UserError, match=r"needs libtpu; .*dsd-jax\[tpu\]"):
        devices_of(Topology.parse("v5e:2x2"))


def test_without_the_compiler_for_gpus_processors_stand_in_for_them(without):
    without("plan-gpu")
    assert {each.platform for each in devices_of(Topology.parse("h100:2"))} == {"cpu"}


def test_an_export_is_not_tried_without_pytorch(without, tmp_path: Path):
    without("torch")
    assert largest_difference(tmp_path, tmp_path, [], steps=1, max_sequence_length=16) is None
