"""Parts of detectors: what stands between an encoder and torchvision's losses."""
