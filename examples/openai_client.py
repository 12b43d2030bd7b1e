"""OpenAI's client against a server: `dia-engine serve --model talker`, then `python openai_client.py`."""

import os

from openai import OpenAI

url = os.environ.get("DIA_URL", "http://127.0.0.1:8000")
client = OpenAI(base_url=url + "/v1", api_key=os.environ.get("DIA_API_KEY", "none"))
script = "[S1] Can you count? [S2] Five six seven eight nine."

with client.audio.speech.with_streaming_response.create(
    model="dia", voice="alloy", input=script, response_format="mp3", extra_body={"seed": 7}
) as response:
    response.stream_to_file("openai.mp3")
print("openai.mp3:", os.path.getsize("openai.mp3"), "bytes, seed", response.headers["x-seed"])
