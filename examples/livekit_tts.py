"""The voice of a LiveKit agent. `dia-engine serve --model talker`, then this."""

import asyncio
import os

from livekit.plugins import openai


async def main():
    voice = openai.TTS(
        base_url=os.environ.get("DIA_URL", "http://127.0.0.1:8000") + "/v1",
        api_key=os.environ.get("DIA_API_KEY", "none"),
        model="dia",
        voice="alloy",
    )
    seconds = 0.0
    async with voice.synthesize("Hello, my little robot. Can you count?") as stream:
        async for event in stream:
            seconds += event.frame.duration
    print(f"{seconds:.2f} s of audio")
    await voice.aclose()


asyncio.run(main())
