"""The rules, by what they watch over."""

from collections.abc import Mapping
from typing import Final

from alerts.rule import Rule
from alerts.rules import (
    agents,
    gpus,
    health,
    ledger,
    meters,
    pipeline,
    places,
    power,
    tenants,
)

THEMES: Final[Mapping[str, tuple[Rule, ...]]] = {
    "power": power.RULES,
    "places": places.RULES,
    "meters": meters.RULES,
    "tenants": tenants.RULES,
    "gpus": gpus.RULES,
    "health": health.RULES,
    "agents": agents.RULES,
    "pipeline": pipeline.RULES,
    "ledger": ledger.RULES,
}
RULES: Final[tuple[Rule, ...]] = tuple(rule for rules in THEMES.values() for rule in rules)
"""Every rule; alerts/runbooks/ has a page of the same name for each."""
