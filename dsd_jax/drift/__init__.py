"""The drift meter: how far a picture's content moved against another's, whatever their light."""

from dsd_jax.drift.meter import Drift, Place, Verdict, measure_drift

__all__ = ["Drift", "Place", "Verdict", "measure_drift"]
