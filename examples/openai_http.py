"""OpenAI's speech route with httpx alone: `dia-engine serve --model talker`, then this."""

import os

import httpx

url = os.environ.get("DIA_URL", "http://127.0.0.1:8000")
headers = {"Authorization": f"Bearer {os.environ.get('DIA_API_KEY', 'none')}"}
request = {
    "model": "dia",
    "voice": "default",
    "input": "[S1] Can you count? [S2] Five six seven eight nine.",
    "response_format": "pcm",  # 16-bit samples, mono, 24 kHz; mp3, opus, aac, flac and wav stream too
    "seed": 7,
}

with httpx.stream("POST", f"{url}/v1/audio/speech", json=request, headers=headers, timeout=60) as response:
    if response.is_error:
        raise SystemExit(f"{response.status_code}: {response.read().decode()}")
    with open("openai.pcm", "wb") as file:
        for data in response.iter_bytes():  # as they are made: a player could begin here
            file.write(data)
print(f"openai.pcm: {os.path.getsize('openai.pcm') / 48_000:.2f} s, seed {response.headers['x-seed']}")
