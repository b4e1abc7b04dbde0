"""What every demonstration has in common: it is as good as its checks."""

from __future__ import annotations

from typing import Any


class Checked:
    """A base of results, which are dataclasses: `checks` maps each check's name to whether it held."""

    checks: dict[str, bool]

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return bool(self.checks) and not self.failed

    @property
    def failed(self) -> list[str]:
        """The names of the checks that do not hold."""
        return [name for name, good in self.checks.items() if not good]

    def as_json(self) -> dict[str, Any]:
        """Return it as one JSON object."""
        return {"ok": self.ok, **vars(self)}
