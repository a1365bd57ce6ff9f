import vae.torchvision_ops  # noqa: F401  (before anything imports torchvision)
