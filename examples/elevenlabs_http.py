"""ElevenLabs' text-to-dialogue with httpx alone: `dia-engine serve --model talker`, then this."""

import os

import httpx

url = os.environ.get("DIA_URL", "http://127.0.0.1:8000")
headers = {"xi-api-key": os.environ.get("DIA_API_KEY", "none")}
turns = [
    {"text": "Can you count?", "voice_id": "s1"},  # GET /v1/voices lists them; uploaded ones have names of their own
    {"text": "Five six seven eight nine.", "voice_id": "s2"},
]

with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
    route = "/v1/text-to-dialogue/stream?output_format=mp3_44100_128"
    with client.stream("POST", route, json={"inputs": turns, "seed": 7}) as response:
        if response.is_error:
            raise SystemExit(f"{response.status_code}: {response.read().decode()}")
        with open("elevenlabs.mp3", "wb") as file:
            for data in response.iter_bytes():
                file.write(data)
print("elevenlabs.mp3:", os.path.getsize("elevenlabs.mp3"), "bytes")
