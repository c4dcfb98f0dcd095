import pytest

from dsd_jax.errors import UserError
from dsd_jax.shares import ALL, ShareFlags, WorkerShare


def slurm(task: int, first: int = 0, last: int = 7, step: int = 1) -> dict[str, str]:
    """Variables that SLURM sets for a task of `--array=first-last:step`."""
    return {
        "SLURM_ARRAY_TASK_ID": str(task),
        "SLURM_ARRAY_TASK_MIN": str(first),
        "SLURM_ARRAY_TASK_MAX": str(last),
        "SLURM_ARRAY_TASK_STEP": str(step),
        "SLURM_ARRAY_TASK_COUNT": str(len(range(first, last + 1, step))),
    }


@pytest.mark.parametrize(("first", "last", "step"), [(0, 7, 1), (1, 8, 1), (5, 12, 1), (0, 14, 2)])
def test_every_task_of_an_array_has_a_share_of_its_own(first: int, last: int, step: int):
    tasks = range(first, last + 1, step)
    shares = [ShareFlags().share(slurm(task, first, last, step)) for task in tasks]
    assert shares == [WorkerShare(i, 8) for i in range(8)]
    assert sorted(i for share in shares for i in share.of(20)) == list(range(20))


def test_an_indexed_job_gives_the_number_and_the_flags_the_count():
    job = {"JOB_COMPLETION_INDEX": "3"}
    assert ShareFlags(num_shards=4).share(job) == WorkerShare(3, 4)
    with pytest.raises(UserError, match=r"this is worker 3, but .*; give --num_shards"):
        ShareFlags().share(job)


def test_flags_win_over_the_scheduler():
    assert ShareFlags(2, 5).share(slurm(1)) == WorkerShare(2, 5)
    assert ShareFlags(num_shards=16).share(slurm(4, 1, 8)) == WorkerShare(3, 16)


def test_without_flags_and_scheduler_one_process_does_all():
    assert ShareFlags().share({}) == ALL
    assert ShareFlags(num_shards=1).share({}) == ALL


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (ShareFlags(shard=1), {}, "the number of workers is not known; give --num_shards"),
        (ShareFlags(num_shards=4), {}, "4 workers, but the number of this one is not known"),
        (ShareFlags(4, 4), {}, "shard 4 does not exist among 4; shards are numbered from 0 to 3"),
        (ShareFlags(-1, 4), {}, "shard -1 does not exist among 4"),
        (ShareFlags(), {"SLURM_ARRAY_TASK_ID": "x"}, "SLURM_ARRAY_TASK_ID must be a whole number"),
    ],
)
def test_a_share_that_cannot_be_is_refused(flags, environment, message):
    with pytest.raises(UserError, match=message):
        flags.share(environment)
