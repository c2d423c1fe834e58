"""What torch's CPU allocator gives out, by its own record."""

from __future__ import annotations

from collections.abc import Callable

import torch


def recorded(act: Callable[[], object]) -> int:
    """The most bytes that torch's CPU allocator had given out at once, of those it gave out during `act`."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        act()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
