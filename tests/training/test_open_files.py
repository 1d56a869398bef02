"""What a step opens it closes."""

import os

from builders import learner, prompts
from marble_core.checkpoints import CheckpointStore
from marble_core.training import loop


def test_the_open_files_of_a_training_do_not_grow_with_its_steps(tmp_path):
    counts = []
    one = learner("train.steps=7", "train.checkpoint_every=2")
    loop.train(
        one, prompts(), CheckpointStore(tmp_path, None, "run"), lambda _: counts.append(len(os.listdir("/proc/self/fd")))
    )
    assert len(counts) == 7 and max(counts[3:]) <= counts[2], counts
