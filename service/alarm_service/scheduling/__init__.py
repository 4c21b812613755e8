"""From a call's samples to batches on a device: the door, the queue, the thread that runs them."""
