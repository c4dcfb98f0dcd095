"""Tasks: what they name exists, and what cannot be a task is refused."""

import pytest

from dsd_jax.data.make.wording import load_wording
from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.depths import depth_metrics
from dsd_jax.infer.evaluate.measures import image_metrics
from dsd_jax.infer.evaluate.moved import drift_metrics
from dsd_jax.tasks import TASKS, Similarity, Task, task_named


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_text_that_a_task_names_is_in_our_wordings(task: Task):
    prompts, judge, caption = (
        load_wording(None, stage, [task.name]).texts for stage in ("prompts", "judge", "caption")
    )
    if question := task.question:
        assert {*question.steps, question.scores, question.grid} <= {*judge}
        assert all(f'"{aspect}"' in judge[question.scores] for aspect in question.aspects)
    assert {task.description, task.instruction} <= {*caption}
    if task.grid is not None:
        assert task.grid in prompts
    if task.lit is not None:
        assert {task.lit.panels, task.lit.scene, task.lit.scene_system} <= {*prompts}


def test_a_task_without_a_judge_says_what_scores_it():
    with pytest.raises(UserError, match=r"'depth' has no judge: .*'depth-order' scores"):
        task_named("depth").asked()


def test_every_metric_of_a_task_is_one_that_evaluations_know():
    known = {own.name for own in (*image_metrics(), *drift_metrics(), *depth_metrics())}
    named = {task.name: task.metric for task in TASKS.values() if task.metric}
    assert named == {
        "identity": "dino-others",
        "relight": "drift",
        "expression": "dino-others",
        "depth": "depth-order",
    }
    assert set(named.values()) <= known


def test_an_unknown_task_is_named_with_the_nearest_one():
    with pytest.raises(UserError, match=r"no task 'relihgt'; .*did you mean 'relight'"):
        task_named("relihgt")


@pytest.mark.parametrize("name", ["", "Relight", "re-light", "1st", "a" * 65])
def test_a_name_that_cannot_stand_in_an_id_is_refused(name: str):
    with pytest.raises(UserError, match="lower-case word without hyphens"):
        Task(name)


@pytest.mark.parametrize("bounds", [(0.5, 0.4), (0.0, 1.2), (-0.1, 0.9)])
def test_bounds_of_similarity_are_checked(bounds: tuple[float, float]):
    with pytest.raises(UserError, match="0 <= min_similarity < max_similarity <= 1 must hold"):
        Similarity(*bounds)
