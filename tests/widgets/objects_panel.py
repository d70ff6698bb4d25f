"""What tests of the panel *Objects* have in common."""

import numpy as np


def boxes(depth=16):
    """Two boxes with a neck between them, and one apart; 8 or 16 slices."""
    mask, edge = np.zeros((depth, 60, 80), np.uint8), depth // 8
    box, neck = slice(edge, -edge), slice(3 * edge, 5 * edge)
    mask[box, 5:25, 5:30] = mask[box, 5:25, 40:70] = mask[neck, 13:17, 30:40] = 1
    mask[box, 35:55, 10:40] = 1
    return mask


def settle(panel, qtbot):
    """Wait until the objects are found and measured as they are."""
    qtbot.waitUntil(
        lambda: panel.worker is None and panel.table is not None and not panel.session.stale,
        timeout=120_000,
    )
