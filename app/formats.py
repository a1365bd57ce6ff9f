"""File suffixes that longtake writes."""

VIDEO_SUFFIXES = (".mp4", ".webm", ".gif", ".mkv")
IMAGE_SUFFIXES = (".png",)
