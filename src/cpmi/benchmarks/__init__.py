"""Benchmarks of step rewards against human judgment; each turns cases into ``EvalResult``s."""
