"""DALI pipelines: decode, reduce and prepare images on the GPU, or on the CPU where there is none."""
