"""Kubernetes' grammar, by values that its own tests and documents have."""

from collections.abc import Callable
from decimal import Decimal

import pytest

from marble_core.config import kubernetes

GOOD: dict[Callable[[str], str], tuple[str, ...]] = {
    kubernetes.name: ("a", "marble-s3", "a.b-c.d0", "x" * 63, ".".join(["x" * 63] * 3)),
    kubernetes.namespace: ("team-a", "0"),
    kubernetes.label_key: ("team", "nvidia.com/gpu.product", "A_b.c", "a.b/C"),
    kubernetes.label_value: ("", "H100", "NVIDIA-H100-80GB-HBM3", "a_b.c", "x" * 63),
    kubernetes.resource: ("nvidia.com/gpu", "amd.com/gpu", "nvidia.com/mig-1g.10gb", "gpu.intel.com/i915"),
    kubernetes.quantity: ("0", "2", "1.5", ".5", "500m", "8Gi", "1E", "1Ei", "2e3", "100n", "5u", "1.", "3k"),
}
BAD: dict[Callable[[str], str], tuple[str, ...]] = {
    kubernetes.name: ("", "A", "a_b", "-a", "a-", "a..b", "a/b", "x" * 64, "a\n", ".".join(["x" * 63] * 5)),
    kubernetes.namespace: ("", "team.a", "x" * 64, "-"),
    kubernetes.label_key: ("", "/a", "a/", "a/b/c", "A.b/c", "the team", "-a", "x" * 64),
    kubernetes.label_value: ("a b", "-a", "a-", "x" * 64, "a/b", "a\n"),
    kubernetes.resource: ("", "gpu", "NVIDIA H100", "nvidia.com/", "/gpu", "nvidia.com/gpu/0", "Nvidia.com/gpu"),
    kubernetes.quantity: ("", "plenty", "-1", "+1", "8GB", "8 Gi", "8gi", "1K", "1e", "1e1e1", ".", "1.2.3", "\u0663"),
}


@pytest.mark.parametrize("check", GOOD, ids=lambda check: check.__name__)
def test_what_kubernetes_takes_is_taken_and_what_it_refuses_is_refused_with_the_value(check: Callable[[str], str]) -> None:
    assert [check(text) for text in GOOD[check]] == list(GOOD[check])
    for text in BAD[check]:
        with pytest.raises(ValueError, match="is no") as error:
            check(text)
        assert "\n" not in str(error.value)


def test_quantities_are_held_against_each_other_in_their_unit() -> None:
    texts = (
        "100n",
        "5u",
        "500m",
        ".5",
        "1",
        "1k",
        "1Ki",
        "2e3",
        "1M",
        "1Mi",
        "1G",
        "1Gi",
        "1T",
        "1Ti",
        "1P",
        "1Pi",
        "1E",
        "1Ei",
    )
    amounts = [kubernetes.amount(text) for text in texts]
    assert amounts == sorted(amounts) and amounts[2] == amounts[3] and kubernetes.amount("1.5Gi") == Decimal(1536 * 2**20)
