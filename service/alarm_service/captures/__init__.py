"""Captures: served samples with their rewards, in files (`alarm serve --capture`)."""
