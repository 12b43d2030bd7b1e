"""The voice of a pipecat agent: text frames in, audio frames out. `dia-engine serve --model talker`, then this."""

import asyncio
import os

from pipecat.frames.frames import EndFrame, TTSAudioRawFrame, TTSSpeakFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.openai.tts import OpenAITTSService
from pipecat.workers.runner import WorkerRunner


class Speaker(FrameProcessor):
    """Where a transport would play what it gets."""

    seconds = 0.0

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        if isinstance(frame, TTSAudioRawFrame):
            self.seconds += len(frame.audio) / 2 / frame.sample_rate
        await self.push_frame(frame, direction)


async def main():
    voice = OpenAITTSService(
        base_url=os.environ.get("DIA_URL", "http://127.0.0.1:8000") + "/v1",
        api_key=os.environ.get("DIA_API_KEY", "none"),
        sample_rate=24_000,
        settings=OpenAITTSService.Settings(model="dia", voice="alloy"),
    )
    speaker = Speaker()
    worker = PipelineWorker(
        Pipeline([voice, speaker]), params=PipelineParams(audio_out_sample_rate=24_000), enable_rtvi=False
    )
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await worker.queue_frames([TTSSpeakFrame("Hello, my little robot."), TTSSpeakFrame("Can you count?"), EndFrame()])
    await runner.run()
    print(f"{speaker.seconds:.2f} s of audio")


asyncio.run(main())
