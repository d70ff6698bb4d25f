"""Filter a table by conditions that the user types, such as ``volume_um3 > 0.1 and not touches_border``."""

from __future__ import annotations

import operator
import re

import pandas as pd

from napari_kdunet.core import ConfigError

__all__ = ["filter_table"]

_COMPARE = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
_CONDITION = re.compile(r"(not\s+)?([A-Za-z]\w*)\s*(?:(<=|>=|!=|==|<|>|=)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?))?")


def filter_table(table: pd.DataFrame, text: str) -> pd.DataFrame:
    """Return the rows for which all conditions hold, joined by ``and``: a column, or a column compared with a number.

    Raises
    ------
    ConfigError
        If a condition cannot be parsed, or there is no such column.
    """
    for part in re.split(r"\s+and\s+|&", text.strip()) if text.strip() else []:
        match = _CONDITION.fullmatch(part.strip())
        if match is None:
            raise ConfigError(
                f"the filter {part.strip()!r} cannot be read: type conditions joined by and, without brackets, such as "
                "volume_um3 > 0.1 and branches = 0"
            )
        negated, name, sign, number = match.groups()
        if name not in table:
            near = ", ".join(each for each in table if name.lower()[:4] in each.lower()) or "id, volume_um3, ..."
            raise ConfigError(f"the table has no column {name!r}: type the name of a column ({near})")
        try:
            holds = table[name].astype(bool) if sign is None else _COMPARE[sign](table[name], float(number))
        except ValueError:
            raise ConfigError(f"the filter {part.strip()!r} cannot be read: {number!r} is no number") from None
        table = table[~holds if negated else holds]
    return table
