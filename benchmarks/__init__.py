"""One module a question, `python -m benchmarks.NAME`; README.md says what each asks and how to read its answer."""
