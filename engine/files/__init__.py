"""What lies on a disk or the hub: found, fetched, read and written."""
