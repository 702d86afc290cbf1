"""The benches that a GPU changes most: at sizes that suit one, within ten minutes, or tiny, as a try."""

from __future__ import annotations

# Size → bench → its arguments.
SIZES = {
    "gpu": {
        "step": ("gpu", "1", "5", "trainer-teacher,trainer-plain"),
        "scoring": ("base", "128", "256", "3"),
        "sooner": ("en", "1", "1", "en", "512"),
    },
    "tiny": {
        "step": ("tiny", "1", "2", "trainer-teacher,trainer-plain"),
        "scoring": ("tiny", "32", "8", "1"),
        "sooner": ("en", "1", "0.02", "en", "64"),
    },
}
