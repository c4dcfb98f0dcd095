"""Names of lights, as `dsd_jax/lights.toml` has them; the server knows their words."""

__all__ = ["LIGHTS"]

LIGHTS = {
    "direction": (
        "left", "right", "above", "below", "front", "behind", "upper_left", "upper_right",
    ),
    "source": (
        "sun", "overcast", "moon", "window", "lamp", "candle", "fire", "street_lamp", "neon",
        "screen", "flash", "softbox",
    ),
    "time": ("dawn", "morning", "noon", "golden_hour", "dusk", "night"),
    "temperature": ("amber", "warm", "neutral", "cool", "cold"),
    "hardness": ("hard", "soft", "diffuse"),
    "contrast": ("low", "high"),
}  # fmt: skip
"""Values of each aspect of a light."""
