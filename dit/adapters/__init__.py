"""Any diffusers video pipeline behind the interface of `dit.pipeline.Pipeline`: open weights, one family each."""
