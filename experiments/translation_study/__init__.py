"""Tests ALaRM's claim on Spanish to English translation: `python -m translation_study --help`."""
