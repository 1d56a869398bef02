"""The servers for fixtures of a module."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def services_of_module(servers: dict[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in servers.items():
            patch.setenv(name, value)
        yield
