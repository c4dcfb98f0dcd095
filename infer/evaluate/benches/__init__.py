"""Benchmarks: an adapter for each, which reads its files and makes cases of them."""
