"""Voices: prompts of audio and transcript under a name, uploaded or made from a seed."""
