"""`dia-engine batch`: many scripts from one file into one folder, in as many slots as fit, resumable."""
