"""The commands that users type make a dataset that the trainer reads out of captions."""

from pathlib import Path

import pytest

from benchmarks.kill.make import said
from dsd_jax.cli import main as dsd
from dsd_jax.data.pairs.store import PairStore
from dsd_jax.toy.making.random_pipeline import write_random_pipeline
from tests.core.llm.server import Server
from tests.core.llm.wire import Question
from tests.tiny_run import RECIPE, run_training

CONFIG = """
root = "made"
base_path = "flux"
parts = 2

[providers.writer]
kind = "openai"
model = "gpt-4o-2024-11-20"
base_url = "{url}"

[captions]
source = ["{captions}"]
count = 6
provider = "writer"

[prompts]
provider = "writer"

[grids]
height = 128
width = 128
steps = 2
dtype = "float32"

[pairs]
max_similarity = 1.0

[pairs.check] # noise of random weights is hardly a grid
min_support = 0.1
max_uneven = 1.0
min_panel = 8

[judge]
provider = "writer"

[caption]
provider = "writer"

[pack]
size = [32, 32]
"""


def answer(question: Question) -> str:
    if not question.pictures:
        return said(question, 0.5)
    return "The same, so: yes" if len(question.turns) > 1 else "put this cat in the snow"


@pytest.mark.slow
def test_captions_become_a_dataset_that_the_trainer_reads(tmp_path: Path):
    write_random_pipeline(tmp_path / "flux")
    config = tmp_path / "make.toml"
    with Server(answer) as server:
        captions = Path(__file__).parent / "captions.csv"
        config.write_text(CONFIG.format(url=server.openai, captions=captions))
        assert dsd(["data", "make", str(config)]) == 0
        paid = server.paid
        assert dsd(["data", "make", str(config)]) == 0
        assert server.paid == paid
    assert dsd(["data", "status", str(config)]) == 0
    assert dsd(["data", "stats", str(tmp_path / "made"), "--plot", str(tmp_path / "p.png")]) == 0
    assert dsd(["data", "view", str(config), "--output_path", str(tmp_path / "page.html")]) == 0
    assert dsd(["data", "verify", str(tmp_path / "made" / "dataset")]) == 0
    store = PairStore.open(tmp_path / "made" / "dataset")
    assert len(store) > 10
    (tmp_path / "pairs").symlink_to(tmp_path / "made" / "dataset")
    outcome = run_training(tmp_path, tmp_path / "run", RECIPE)
    assert outcome is not None
