"""Memory is blamed for a killed process where the kernel says so, and nowhere else."""

import pytest

from marble_core.runtime import out_of_memory


@pytest.fixture
def counts(tmp_path, monkeypatch):
    """The kernel's files: the container's, then the machine's."""
    files = (tmp_path / "memory.events", tmp_path / "vmstat")
    monkeypatch.setattr(out_of_memory, "COUNTS", files)
    return files


def test_the_containers_own_count_goes_before_the_machines_and_a_rise_is_said(counts):
    container, machine = counts
    machine.write_text("pgfault 9\noom_kill 4\nswap_ra 1\n")
    assert out_of_memory.kills() == 4
    container.write_text("low 0\noom 2\noom_kill 1\noom_group_kill 7\n")
    assert out_of_memory.kills() == 1
    machine.write_text("oom_kill 5\n")
    assert out_of_memory.said(1) == ""
    container.write_text("oom_kill 2\n")
    assert out_of_memory.said(1).startswith("The kernel ended a process meanwhile because memory ran out")


def test_where_the_kernel_says_nothing_the_reader_is_to_look(counts):
    assert out_of_memory.kills() is None and out_of_memory.said(None) == "See the memory of this machine too."
    counts[1].write_text("nothing of the kind")
    assert out_of_memory.kills() is None
