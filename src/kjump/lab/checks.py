"""What every demonstration has in common: a result with named checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from kjump.formats.record import JsonObject

Tell = Callable[[str], None]
"""A function that gets one line for each step of a demonstration."""


def silent(_: str) -> None:
    """Ignore the line."""


class Checked:
    """A base of results, which are dataclasses: `checks` maps each check's name to whether it held."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    checks: Mapping[str, bool]

    @property
    def ok(self) -> bool:
        """Whether there are checks, and every one of them holds."""
        return bool(self.checks) and not self.failed

    @property
    def failed(self) -> list[str]:
        """The names of the checks that do not hold."""
        return [name for name, good in self.checks.items() if not good]

    def to_json(self) -> JsonObject:
        """Return it as one JSON object: `ok`, and all fields."""
        return {"ok": self.ok, **dataclasses.asdict(self)}
