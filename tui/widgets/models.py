"""The list of models in the load dialog."""

from __future__ import annotations

from ..plans import Item, item_row
from ..render.lines import Row
from .row_list import RowList


class ModelList(RowList[Item]):
    """The models of this machine."""

    def item_row(self, item: Item, width: int) -> Row:
        return item_row(item, width, self.glyphs)
