"""ElevenLabs' client against a server, a dialogue of two voices: `dia-engine serve --model talker`, then this."""

import os

from elevenlabs import DialogueInput, ElevenLabs

url = os.environ.get("DIA_URL", "http://127.0.0.1:8000")
client = ElevenLabs(base_url=url, api_key=os.environ.get("DIA_API_KEY", "none"))
turns = [
    DialogueInput(text="Can you count?", voice_id="alloy"),
    DialogueInput(text="Five six seven eight nine.", voice_id="nova"),
]
with open("dialogue.mp3", "wb") as file:
    for chunk in client.text_to_dialogue.stream(inputs=turns, output_format="mp3_44100_128", seed=7):
        file.write(chunk)
print("dialogue.mp3:", os.path.getsize("dialogue.mp3"), "bytes")
