"""From a folder of videos to what a model trains on: clips, their scores, captions and latents."""
