"""From bytes on disk to batches on the device."""
