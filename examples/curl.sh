#!/bin/sh
# curl against a server: `dia-engine serve --model talker`, then this.
set -e
url="${DIA_URL:-http://127.0.0.1:8000}"
key="Authorization: Bearer ${DIA_API_KEY:-none}"
script='[S1] Can you count? [S2] Five six seven eight nine.'

# A file; the bytes come while the audio is made.
curl -sSf "$url/v1/audio/speech" -H "$key" -H 'Content-Type: application/json' \
    -d "{\"input\": \"$script\", \"voice\": \"alloy\", \"seed\": 7}" -o curl.mp3

# A voice of your own: its audio, what is said in it, and that its speaker agreed.
curl -sSf "$url/v1/audio/speech" -H "$key" -H 'Content-Type: application/json' \
    -d "{\"input\": \"$script\", \"voice\": \"default\", \"response_format\": \"wav\", \"seed\": 7}" -o voice.wav
voice=$(curl -sSf "$url/v1/audio/voices" -H "$key" -F name=mine -F audio_sample=@voice.wav -F "ref_text=$script" \
    -F 'consent=It is a synthetic voice.')
echo "$voice"

# Deleted, so that the next run's `mine` is the only one.
id=$(echo "$voice" | sed 's/.*"id": *"\([^"]*\)".*/\1/')
curl -sSf -X DELETE "$url/v1/audio/voices/$id" -H "$key"
echo
ls -l curl.mp3 voice.wav
