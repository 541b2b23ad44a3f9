"""Checks of the ledger for OverFeat, against examples worked by hand."""

import pytest

from repro.claims.checks import find


def test_maps_by_hand() -> None:
    """221: 108 behind 7×7 at stride 2, 36 pooled, 30, 15 pooled, 15, and 5 pooled. One output more takes 36 pixels.
    Catches pools that overlap, and 3×3 layers without padding."""
    assert find("overfeat_map_side")(221) == 5
    assert find("overfeat_map_side")(221 + 35) == 5
    assert find("overfeat_map_side")(221 + 36) == 6


def test_steps_by_hand() -> None:
    """2 · 3 · 2 · 3 pixels, and without the last 3. Catches the wrong pool moved."""
    assert find("overfeat_steps")(221) == [36, 36 // 3]


def test_offsets_by_hand() -> None:
    """11 units in pairs: 5 for either offset, and a reader of 3 has 3 answers to each. 12 units leave the second offset
    only 5. Catches offsets that read beyond the end."""
    assert find("counts_by_offset")(11, 2, 3) == [5, 3, 6]
    with pytest.raises(ValueError, match="too many"):
        find("counts_by_offset")(12, 2, 3)
