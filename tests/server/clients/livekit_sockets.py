"""LiveKit's ElevenLabs plugin over both WebSockets and over HTTP: text in pieces, audio back."""

import asyncio
import os

import aiohttp
from livekit.plugins import elevenlabs


async def spoken(voice, pieces):
    """Seconds of audio of a stream of text."""
    seconds = 0.0
    async with voice.stream() as stream:
        for piece in pieces:
            stream.push_text(piece)
        stream.end_input()
        async for event in stream:
            seconds += event.frame.duration
    return seconds


async def main():
    url = os.environ.get("DIA_URL", "http://127.0.0.1:8000") + "/v1"
    found = []
    async with aiohttp.ClientSession() as session:
        for model in ("eleven_v3", "eleven_turbo_v2_5"):
            voice = elevenlabs.TTS(
                base_url=url, api_key="none", voice_id="alloy", model=model, encoding="pcm_24000", http_session=session
            )
            found.append(await spoken(voice, ["Hello, my little ", "robot. Can you ", "count?"]))
            async with voice.synthesize("Can you count?") as stream:
                found.append(sum([event.frame.duration async for event in stream]))
            await voice.aclose()
    print("seconds of audio:", *(f"{seconds:.2f}" for seconds in found))
    assert all(seconds > 0.7 for seconds in found), found


asyncio.run(main())
