"""The base is sampled once, and never for what it was not sampled for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from marble_core.evaluation.shared_roles import Sampled, SharedRoles
from marble_core.types import RewardTable


class Sampler:
    def __init__(self, images: Path) -> None:
        self.images, self.calls = images, 0
        images.mkdir()

    def __call__(self) -> Sampled:
        self.calls += 1
        (self.images / "base-000.png").write_bytes(b"image")
        (self.images / "trained-000.png").write_bytes(b"another role's")
        rng = np.random.default_rng(7)
        table = RewardTable(
            ("ocr",), np.where([[True], [False]], rng.normal(size=(2, 1)) / 3, np.nan), {"ocr/x": rng.normal(size=2)}
        )
        return Sampled(table, rng.normal(size=3))


def test_a_role_is_sampled_once_and_read_to_the_bit_with_its_images(tmp_path: Path) -> None:
    shared, first, second = SharedRoles(tmp_path / "roles"), Sampler(tmp_path / "a"), Sampler(tmp_path / "b")
    made = shared.get("base", {"seed": 1}, tmp_path / "a", first)
    read = SharedRoles(tmp_path / "roles").get("base", {"seed": 1}, tmp_path / "b", second)
    assert (first.calls, second.calls) == (1, 0)
    assert read.table.names == made.table.names and read.table.R_NK.tobytes() == made.table.R_NK.tobytes()
    assert read.table.side["ocr/x"].tobytes() == made.table.side["ocr/x"].tobytes()
    assert read.distances_M.tobytes() == made.distances_M.tobytes()
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["base-000.png"]


def test_what_depends_on_something_else_is_sampled_for_itself(tmp_path: Path) -> None:
    shared, sampler = SharedRoles(tmp_path / "roles"), Sampler(tmp_path / "a")
    for role, depends_on in (("base", {"seed": 1}), ("base", {"seed": 2}), ("guided", {"seed": 1})):
        shared.get(role, depends_on, tmp_path / "a", sampler)
    assert sampler.calls == 3


def test_a_role_whose_sampling_was_broken_off_is_not_there(tmp_path: Path) -> None:
    shared, sampler = SharedRoles(tmp_path / "roles"), Sampler(tmp_path / "a")

    def stopped() -> Sampled:
        sampler()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shared.get("base", {}, tmp_path / "a", stopped)
    shared.get("base", {}, tmp_path / "a", sampler)
    assert sampler.calls == 2
