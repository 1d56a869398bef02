"""From a balancing method's name to its balancer."""

from __future__ import annotations

from marble_core.algorithm.auto_trust import AutoTrust
from marble_core.algorithm.balancers import Balancer
from marble_core.algorithm.guards import Guarded
from marble_core.config.balance import BalanceConfig
from marble_core.config.imports import import_class
from marble_core.config.methods import METHODS


def make_balancer(config: BalanceConfig, names: tuple[str, ...], steps: int) -> Balancer:
    """The method's balancer. Raises MarbleError for limits that name no reward or that no weights can meet, and for a user's own
    that cannot be imported."""
    if config.is_own:
        own: Balancer = import_class(config.method, "balance.method")(config, names, steps)
        return own
    shared = tuple(name for name in names if name not in config.guards)
    if config.trust == "auto":
        balancer: Balancer = AutoTrust(config, shared, steps)
    else:
        balancer = import_class(METHODS[config.method.partition(":")[0]].balancer, "balance.method")(config, shared, steps)
    return Guarded(balancer, config, names, steps) if config.guards else balancer
