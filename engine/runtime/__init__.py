"""Who runs when: requests, decode steps, chunks of audio."""
