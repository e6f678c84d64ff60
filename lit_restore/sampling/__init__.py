"""Pictures made of noise by a trained prior, into a folder that can be gone on with."""

from lit_restore.sampling.run import SampleJob, make_samples
from lit_restore.sampling.settings import Settings, settings_of

__all__ = ["SampleJob", "Settings", "make_samples", "settings_of"]
