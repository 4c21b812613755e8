"""ALaRM's claim, tried on Spanish to English translation: `python -m translation_study --help`."""
