"""The procedural world: simulated physics, ray-traced frames and ground truth, as a function of a seed and an index."""

from .clip import Clip, Truth, make_clip, make_clips
from .scene import Scene, Thing, sample_scene

__all__ = ["Clip", "Scene", "Thing", "Truth", "make_clip", "make_clips", "sample_scene"]
