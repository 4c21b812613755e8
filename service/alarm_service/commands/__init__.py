"""The commands of `alarm`, one file each; what is slow to import they import when they run."""
