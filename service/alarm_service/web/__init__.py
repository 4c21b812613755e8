"""HTTP: what comes in, who may send it, and how it is answered."""
