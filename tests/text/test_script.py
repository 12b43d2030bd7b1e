"""Scripts and transcripts: what the model can read of both together."""

import pytest

from dia_engine.text.script import checked_transcript, encode_script
from dia_engine.weights.synthetic import synthetic_config


def test_a_transcript_and_the_space_behind_it_leave_room_for_the_text():
    config = synthetic_config("synthetic:tiny")
    most = config.encoder.max_position_embeddings
    transcript = "a" * (most - 5)
    assert checked_transcript(transcript, True, 4, config) == transcript
    assert len(encode_script("b" * 4, transcript, True, config)) == most
    with pytest.raises(
        ValueError, match=f"^audio_prompt_text has {most - 5} bytes .* at most {most} of it and the text"
    ):
        checked_transcript(transcript, True, 5, config)
