"""Conversion tables: rules, the engine that runs them both ways, and its refusals."""
