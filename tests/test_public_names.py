"""What a user imports comes from marble_core itself, whatever file it lies in, and costs what it needs."""

import doctest
import subprocess
import sys

import numpy as np
import pytest

import marble_core


@pytest.mark.parametrize("name", sorted(marble_core._HOME))
def test_a_public_name_is_where_the_table_says(name: str) -> None:
    assert getattr(marble_core, name).__module__ == marble_core._HOME[name] and name in dir(marble_core)


def test_importing_the_package_and_its_torch_free_names_takes_no_torch() -> None:
    code = "import sys; from marble_core import Balancer, Prompt, Scorer, RunConfig, load_config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Balanser"):
        _ = marble_core.Balanser


LOADS_A_MODEL = {"Learner", "optimizer_step", "start_learner"}  # test_examples.py trains with these three


@pytest.mark.parametrize("name", sorted(marble_core._HOME.keys() - LOADS_A_MODEL))
def test_the_example_of_a_public_name_runs_and_gives_what_it_says(name: str) -> None:
    names = {public: getattr(marble_core, public) for public in marble_core._HOME}
    said = getattr(marble_core, name).__doc__.split("Example:")[1]
    test = doctest.DocTestParser().get_doctest(said, {**names, "np": np}, name, None, None)
    found = doctest.DocTestRunner().run(test)
    assert found.attempted and not found.failed, name
