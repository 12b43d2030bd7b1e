"""`dia-engine serve`: speech over HTTP and WebSockets, in the shapes that OpenAI's and ElevenLabs' clients speak.

A request comes in by a route (`routes/`), becomes a `Speech` (`speech/`) with the voices that it names (`voices/`),
runs in the engine's scheduler beside others, is resampled and encoded as its audio arrives (`audio/`), and goes out.
The event loop only moves bytes: the engine computes in its own thread, encoders in a few more.

`app.build_app` makes the ASGI application, `command.run` is the command.
"""
