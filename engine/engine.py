"""`Engine`: load a model, generate and stream audio from scripts."""

import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from .capacity import check_slots
from .codec import Codec
from .codec.windowed import CodeWindows, SoundWindows
from .devices.device import computing, resolve_device, resolve_dtype
from .devices.precision import full_float32
from .devices.process import check_not_forked
from .devices.threads import is_small
from .files.audio import write_audio
from .files.hub import DEFAULT_MODEL
from .kernels.cpu.onednn import PackedInt8Weight, pack_for_device
from .kernels.quantized import Weight
from .kernels.tuning import check_tuning
from .longform.options import AudioPrompts, PerText, SpeechOptions, Text, Transcript, Transcripts
from .longform.parsing import parse_scripts
from .longform.planning.checked_plan import make_plan
from .longform.planning.plan import Plan
from .longform.runner import RequestRunner, call_for
from .longform.script import Script, at_asked_loudness, check_streamable
from .longform_settings import LongFormSettings
from .messages import shown
from .model.config import DiaConfig
from .model.dia import DiaModel
from .model.teacher_forcing import teacher_forced_logits
from .progress import check_on_progress, steps_bar
from .results import Generation, Progress
from .runtime.call import Call, Chunk
from .runtime.chunking import ChunkSizes
from .runtime.engine_thread import EngineThread
from .runtime.limits import Limits
from .runtime.prompts import checked_codes, read_sample
from .runtime.request import Request
from .runtime.stream import AudioStream
from .sampling_params import MODEL_DEFAULT, ModelDefault, SamplingParams, check_seed, defaults_within, require_integer
from .text.tokenizer import encode_text
from .weights.load import default_dtype
from .weights.recipes import checked_recipe
from .weights.source import ModelSource, default_long_form, resolve_files, resolve_model

# Chunk sizes of `generate`. Decoding in windows bounds the codec's memory, and how long it delays other requests; the
# overlap of the windows costs 8 % of the codec's work.
WHOLE = ChunkSizes(256, 256)


class Engine:
    """A Dia model with its audio codec.

    Create one with `load`, `from_pretrained` or `from_local`. All methods may be called from any thread.

    Attributes:
        config: sizes and special ids of the model.
        weights: tensors on `device`, named as in `model.shapes.parameter_shapes`.
        model: the `DiaModel`. Its interface may change in any version.
        codec: the `Codec`, or None after `load_dac=False`.
        windows: decodes codes to audio in overlapping windows.
        device, dtype: device and dtype of the model.
        max_rows: decoder rows per slot, the upper limit of `max_tokens`.
        defaults: the model's own sampling defaults, by parameter name. Parameters not listed have the reference's.
        long_form: how long scripts are split into pieces.
    """

    def __init__(
        self,
        config: DiaConfig,
        weights: Mapping[str, Weight | PackedInt8Weight],
        codec: Codec | None = None,
        *,
        graph: bool = True,
        defaults: Mapping[str, float | int | None] | None = None,
        limits: Limits | None = None,
        long_form: LongFormSettings | None = None,
        name: str = "",
    ):
        """Build an engine from weights in memory, named as in `model.shapes.parameter_shapes`."""
        limits = limits or Limits()
        self.max_rows = limits.rows(config)
        table = weights["decoder.embedding.weight"]
        with torch.no_grad(), torch.autocast(table.device.type, enabled=False), full_float32():
            self.model = DiaModel(config, weights)
        self.config, self.weights, self.codec = config, weights, codec
        self.device, self.dtype = self.model.device, self.model.dtype
        self.defaults = defaults_within(defaults or {}, self.max_rows)
        self.long_form = long_form or default_long_form(config)
        self._name = name
        self.windows = CodeWindows(self.device) if codec is None else SoundWindows(codec)
        small = is_small((weight.nbytes for weight in weights.values()), self.device)
        # None of these may refer to the engine: a running thread would keep it alive for ever.
        self._modes = partial(computing, self.device, alone=small)
        self._thread = EngineThread(
            self.model, self.windows, limits, self._modes,
            graph=graph, frames_per_second=self._frames_per_second, uses_workers=small and codec is not None,
        )  # fmt: skip
        self._runner = RequestRunner(
            self._thread, self.windows, codec, config, self.long_form,
            frames_per_second=self._frames_per_second, max_rows=self.max_rows,
        )  # fmt: skip
        self._closed = weakref.finalize(self, self._thread.close)

    @classmethod
    def load(
        cls,
        model: str | Path = DEFAULT_MODEL,
        *,
        quant: str | Mapping[str, str] | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        codec: str | Path | Codec | None = None,
        codec_dtype: str | torch.dtype | None = None,
        load_dac: bool = True,
        revision: str | None = None,
        graph: bool = True,
        max_slots: int | None = None,
        max_waiting: int | None = None,
        max_rows: int | None = None,
    ) -> "Engine":
        """Load a model from the Hugging Face hub or a local folder.

        Args:
            model: hub id or folder with weights in transformers' or nari-labs' layout; "talker", the small model that
                is part of this package; or "synthetic:tiny" or "synthetic:full", models with random weights.
            quant: quantize the weights while loading: "int8", "nf4" (or "4bit"), "nf4-all", or a mapping from name
                patterns to formats, see `recipes.checked_recipe`. Default: keep the weights as stored; checkpoints
                that are quantized already load without it.
            dtype: "float32", "bfloat16" or "float16". Default: on a GPU bfloat16, or float16 if the GPU lacks it; on a
                CPU bfloat16 if the CPU multiplies it natively and the model has 100 million parameters or more, else
                float32.
            device: "cuda", "cuda:1", "cpu" or a torch.device. Default: "cuda" if available, else "cpu".
            codec: hub id, folder or file of the audio codec, or a loaded `Codec`. Default: the folder `codec` inside
                the model's folder if it exists, else "descript/dac_44khz".
            codec_dtype: dtype of the codec's convolutions, default "float32". Half precision is meant for GPUs; at
                full size the relative error of the audio is then 1.4 % (bfloat16) or 0.2 % (float16).
            load_dac: whether to load the codec. Without it `generate` and `stream` return codes.
            revision: branch, tag or commit of the hub repository.
            graph: whether to capture decode steps in CUDA graphs. False launches every kernel from Python, for
                debugging; the results are the same. Ignored on a CPU.
            max_slots: number of requests that run concurrently; more requests wait. Default: 8 on a CPU; on a GPU as
                many as fit into half of the memory that is free after loading. Memory is allocated on demand.
            max_waiting: number of requests that may wait for a slot. Beyond it, calls raise `EngineFull`. Default: no
                limit.
            max_rows: decoder rows per slot, the upper limit of `max_tokens`. Default: the model's own limit. A smaller
                number saves memory per slot: 1200 rows are 14 seconds of audio for the published Dia.

        Returns:
            an engine, ready for `generate` and `stream`.

        Raises:
            FileNotFoundError: the model does not exist or lacks a file.
            TypeError: a limit is not an integer.
            ValueError: a limit is out of range; a dtype, device or quant is unknown; a file is unusable; the checkpoint
                is quantized already and `quant` is given; or an environment variable has an invalid value.
            RuntimeError: the process was forked from one in which an engine had worked, and cannot compute.
        """
        check_not_forked()
        check_tuning()
        recipe = None if quant is None else checked_recipe(quant)
        device = resolve_device(device)
        dtype = None if dtype is None else resolve_dtype(dtype)
        codec_dtype = None if codec_dtype is None else resolve_dtype(codec_dtype, "codec_dtype")
        source = resolve_model(model, revision)
        limits = Limits(max_slots, max_waiting, max_rows)
        rows = limits.rows(source.config)
        dtype = dtype or default_dtype(source.config, device)
        check_slots(source.config, dtype, device, slots=limits.max_slots, rows=rows)
        stream = source.stream_weights(dtype=dtype, device=device, recipe=recipe)
        # `stream_weights` has checked the file headers but read no weights: open the codec first, so that a missing or
        # unsuitable codec is reported before gigabytes are read.
        codec = source.open_codec(codec, device, codec_dtype) if load_dac else None
        name = str(model) if quant is None else f"{model} {quant if isinstance(quant, str) else 'quantized'}"
        return cls._of(source, stream, codec, graph=graph, limits=limits, name=name)

    @classmethod
    def from_pretrained(
        cls,
        model_name: str = DEFAULT_MODEL,
        compute_dtype: str | torch.dtype = "float32",
        device: str | torch.device | None = None,
        load_dac: bool = True,
    ) -> "Engine":
        """`load` with the argument names and the default dtype (float32) of nari-labs/dia. Raises what `load` raises.

        Args:
            model_name: see `model` of `load`.
            compute_dtype: "float32", "bfloat16" or "float16", or the torch.dtype.
            device, load_dac: see `load`.
        """
        return cls.load(model_name, dtype=compute_dtype, device=device, load_dac=load_dac)

    @classmethod
    def from_local(
        cls,
        config_path: str | Path,
        checkpoint_path: str | Path,
        compute_dtype: str | torch.dtype = "float32",
        device: str | torch.device | None = None,
        load_dac: bool = True,
    ) -> "Engine":
        """Load from a config.json and one checkpoint file (.safetensors, .pth or .bin), as in nari-labs/dia.

        A `codec` folder and a generation_config.json next to config.json are used if they exist.

        Args:
            config_path: path of the config.json.
            checkpoint_path: weights in transformers' or nari-labs' layout.
            compute_dtype, device, load_dac: see `from_pretrained`.

        Raises:
            FileNotFoundError: one of the files is missing.
            ValueError: a file is unusable, or tensors do not match the config; the message lists them.
        """
        device, dtype = resolve_device(device), resolve_dtype(compute_dtype)
        source = resolve_files(config_path, checkpoint_path)
        stream = source.stream_weights(dtype=dtype, device=device)
        return cls._of(source, stream, source.open_codec(None, device) if load_dac else None)

    @classmethod
    def _of(
        cls, source: ModelSource, stream: Iterable[tuple[str, Weight]], codec: Codec | None, **options: Any
    ) -> "Engine":
        """Build an engine from streamed weights. Each is packed for its device before the next is read."""
        weights = {name: pack_for_device(weight) for name, weight in stream}
        return cls(source.config, weights, codec, defaults=source.defaults, long_form=source.long_form, **options)

    @property
    def sample_rate(self) -> int:
        """Sample rate of the generated audio in Hz: 44100 for the published Dia.

        Raises:
            ValueError: the engine was loaded without a codec.
        """
        return self._require_codec().sample_rate

    def prepare(self, slots: int = 1) -> None:
        """Warm up, so that the first requests do not pay for it. A server calls this before it accepts connections.

        On a GPU this allocates the memory of `slots` requests, compiles the kernels, and captures CUDA graphs for all
        batch sizes up to `slots` and for stream windows of the default chunk sizes. Larger batches still work, but
        allocate and capture when they first occur. On a CPU it runs one short request, which loads the compiled code.
        Blocks until running requests let it in; does not affect results.

        Args:
            slots: number of concurrent requests to prepare for, at least 1.

        Raises:
            TypeError: `slots` is not an integer.
            ValueError: `slots` is less than 1 or more than `max_slots`.
            torch.OutOfMemoryError: not enough GPU memory for that many; the message says how many fit, and the engine
                remains usable with those.
            RuntimeError: the engine is closed, or the process was forked from one in which an engine had worked.
        """
        require_integer("slots", slots)
        if slots < 1:
            raise ValueError(f"slots must be at least 1, got {slots}")
        if slots > self.max_slots:
            raise ValueError(f"slots must be at most max_slots, {self.max_slots}, got {shown(slots)}")
        check_not_forked(self.device)
        self._thread.run(lambda: self._thread.scheduler.prepare(slots))
        shortest = self._parse(
            "x", {"max_tokens": self.config.max_delay + 2, "min_tokens": 0}, options=SpeechOptions(split=False), seed=0
        )
        self.run_requests(shortest, warn_of_cuts=False)

    def generate(
        self,
        text: Text,
        max_tokens: PerText[int | None] = None,
        cfg_scale: PerText[float | None] = None,
        temperature: PerText[float | None] = None,
        top_p: PerText[float | None] = None,
        use_torch_compile: bool = False,
        cfg_filter_top_k: PerText[int | ModelDefault | None] = MODEL_DEFAULT,
        audio_prompt: AudioPrompts = None,
        audio_prompt_path: AudioPrompts = None,
        use_cfg_filter: bool | None = None,
        verbose: bool = False,
        *,
        audio_prompt_text: Transcripts = None,
        seed: PerText[int | None] = None,
        sampling_params: PerText[SamplingParams | None] = None,
        min_tokens: PerText[int | None] = None,
        split: bool = True,
        speed: float = 1.0,
        pause: float = 0.0,
        tail_silence: float = 0.0,
        trim_cut_end: bool | None = None,
        closing_tag: bool | None = None,
        loudness: float | None = None,
        details: bool = False,
        on_progress: Callable[[Progress], Any] | None = None,
    ) -> "np.ndarray | Generation | list[np.ndarray] | list[Generation]":
        """Generate audio for a script, or for a list of scripts as a batch.

        Argument names and order are those of nari-labs/dia. A sampling parameter that is None has the model's default
        (`Engine.defaults`), or else the default given below. Calls from several threads run concurrently; requests
        beyond `max_slots` wait, first come, first served. The codes of a request depend on its arguments and seed only,
        not on other requests.

        Args:
            text: script with speaker tags [S1] and [S2], and sounds such as (laughs). Several scripts are a list; an
                iterator yields the parts of one, see `stream`.
            max_tokens: maximum number of decoder rows: prompt frames + 1 + the largest channel delay + generated
                frames. Default: 3072, or the model's own limit if that is smaller.
            cfg_scale: strength of classifier-free guidance; 0 disables it. Default: 3.0.
            temperature: sampling temperature; 0 is greedy. Default: 1.2.
            top_p: nucleus sampling threshold in (0, 1]. Default: 0.95.
            use_torch_compile: ignored; accepted for compatibility.
            cfg_filter_top_k: number of candidates that guidance selects; None for all, MODEL_DEFAULT for the model's
                default. Default: 45.
            audio_prompt: audio to continue, which sets the voices: a path; integer codes [P, C]; or (waveform [samples]
                float32 in [-1, 1], sample rate in Hz). To give one sample per speaker, pass {"S1": ..., "S2": ...}, and
                a dict of transcripts as audio_prompt_text. For a list of texts, pass a list with an entry, or None, for
                each.
            audio_prompt_path: older name of audio_prompt.
            use_cfg_filter: ignored; accepted for compatibility.
            verbose: show a progress bar on standard error, with steps/s and the speed relative to real time.
            audio_prompt_text: transcript of the audio prompt, which is prepended to the text.
            seed: integer in [0, 2^63); the same arguments and seed give the same audio. Default: drawn from torch's
                global generator.
            sampling_params: a `SamplingParams`, instead of max_tokens, cfg_scale, temperature, top_p, cfg_filter_top_k
                and min_tokens.
            min_tokens: number of generated frames before which EOS is forbidden. Default: 0.
            split: whether to split scripts that are too long to be spoken well into pieces, which run concurrently and
                are joined (see `plan`). max_tokens then applies to each piece. False generates any script as one.
            speed: pace of the speech at unchanged pitch, from 0.25 to 4; best between 0.75 and 1.5.
            pause: seconds of silence to insert between turns.
            tail_silence: seconds of silence to append.
            trim_cut_end: whether audio that max_tokens cuts off loses its last frames, which are damaged by forced
                tokens, and fades out. The codes are not changed. Default: True for planned scripts only.
            closing_tag: whether to end the text with the next speaker's tag, which keeps Dia from cutting off the last
                word. Default: True for planned scripts if the model's `long_form` settings say so.
            loudness: integrated loudness of the audio in LUFS (ITU-R BS.1770), from -70 to 0; -16 is usual for
                podcasts. If true peaks would exceed -1 dBTP, the gain is reduced and a warning logged. Needs the extra
                `loudness`. Default: leave the loudness as generated.
            details: return `Generation` objects instead of arrays.
            on_progress: called in this thread with a `Progress` after each piece of a planned script.

        For a list of texts, max_tokens, cfg_scale, temperature, top_p, cfg_filter_top_k, min_tokens, seed and
        sampling_params may each be a list with one value per text.

        Returns:
            audio [samples] float32 at `sample_rate`, without the prompt; codes [T, C] int64 if the engine has no
            codec; or a `Generation` with both if `details`. A list of them for a list of texts. The audio is empty if
            the model ends immediately.

        Raises:
            FileNotFoundError, TypeError, ValueError: an invalid argument, or more texts than `max_slots` +
                `max_waiting`. Raised before any work starts.
            EngineFull: more than `max_waiting` requests would wait.
            RuntimeError: the engine is closed or has failed; the process was forked from one in which an engine had
                worked; or `loudness` is given and the extra `loudness` is not installed.
        """
        requests = self._parse(
            text, sampling_params=sampling_params, seed=seed,
            sampling={
                "max_tokens": max_tokens, "cfg_scale": cfg_scale, "temperature": temperature, "top_p": top_p,
                "cfg_filter_top_k": cfg_filter_top_k, "min_tokens": min_tokens,
            },
            audio_prompt=audio_prompt, audio_prompt_path=audio_prompt_path, audio_prompt_text=audio_prompt_text,
            options=SpeechOptions(split, speed, pause, tail_silence, trim_cut_end, closing_tag, loudness),
            use_torch_compile=use_torch_compile, use_cfg_filter=use_cfg_filter,
        )  # fmt: skip
        generations = self.run_requests(requests, verbose, on_progress=on_progress)
        results = generations if details else [each.codes if each.audio is None else each.audio for each in generations]
        return results if isinstance(text, (list, tuple)) else results[0]

    def stream(
        self,
        text: Text,
        max_tokens: PerText[int | None] = None,
        cfg_scale: PerText[float | None] = None,
        temperature: PerText[float | None] = None,
        top_p: PerText[float | None] = None,
        use_torch_compile: bool = False,
        cfg_filter_top_k: PerText[int | ModelDefault | None] = MODEL_DEFAULT,
        audio_prompt: AudioPrompts = None,
        audio_prompt_path: AudioPrompts = None,
        use_cfg_filter: bool | None = None,
        verbose: bool = False,
        *,
        audio_prompt_text: Transcripts = None,
        seed: PerText[int | None] = None,
        sampling_params: PerText[SamplingParams | None] = None,
        min_tokens: PerText[int | None] = None,
        split: bool = True,
        speed: float = 1.0,
        pause: float = 0.0,
        tail_silence: float = 0.0,
        trim_cut_end: bool | None = None,
        closing_tag: bool | None = None,
        loudness: None = None,
        chunk_frames: int | None = None,
        first_chunk_frames: int | None = None,
        on_progress: Callable[[Progress], Any] | None = None,
    ) -> AudioStream[np.ndarray] | AudioStream[tuple[int, np.ndarray]]:
        """Like `generate`, but yields the audio in chunks while it is generated. Joined, the chunks are the same audio.

        Generation starts when the first chunk is requested, and does not wait for the reader: chunks that are not read
        yet are buffered. To stop early, call `close` on the stream, leave its `with` block, or drop the stream; its
        slot is free after the current launch. `AudioStream.result` has the codes and the finish reason at the end.

        Args:
            text, ..., closing_tag: see `generate`; checked in this call. An audio prompt given as audio is encoded when
                the first chunk is requested; one given as codes (see `load_audio`) needs no encoding. The text may also
                be an iterator or asynchronous iterator of strings, for example the tokens of a language model:
                generation starts when a sentence or turn is complete, or when the iterator yields `dia_engine.FLUSH`.
            chunk_frames: frames per chunk, 512 samples each for the published codec. Each chunk is decoded with the
                frames that its samples depend on, so smaller chunks cost more. Default: 48, or twice the codec's
                receptive field if that is more.
            first_chunk_frames: frames of the first chunk; later chunks double in size up to chunk_frames. The last
                chunk may be smaller. Default: 8, or chunk_frames if that is less.
            loudness: must be None, as loudness can only be measured over the whole audio.
            on_progress: see `generate`; called in the thread that reads.

        Returns:
            an object that is both an iterator and an asynchronous iterator. It yields non-empty chunks: audio [samples]
            float32, or codes [n, C] int64 if the engine has no codec. For a list of texts it yields (index, chunk):
            chunks of one text in order, those of different texts interleaved.

        Raises:
            FileNotFoundError, TypeError, ValueError: an invalid argument, or more texts than `max_slots` +
                `max_waiting`. Raised by this call, before any work starts.
            EngineFull: more than `max_waiting` requests would wait. Raised when the first chunk is requested.
            RuntimeError: the engine is closed or has failed, or the process was forked from one in which an engine had
                worked.
        """
        sizes = ChunkSizes(chunk_frames, first_chunk_frames)
        requests = self._parse(
            text, sampling_params=sampling_params, seed=seed,
            sampling={
                "max_tokens": max_tokens, "cfg_scale": cfg_scale, "temperature": temperature, "top_p": top_p,
                "cfg_filter_top_k": cfg_filter_top_k, "min_tokens": min_tokens,
            },
            audio_prompt=audio_prompt, audio_prompt_path=audio_prompt_path, audio_prompt_text=audio_prompt_text,
            options=SpeechOptions(split, speed, pause, tail_silence, trim_cut_end, closing_tag, loudness),
            use_torch_compile=use_torch_compile, use_cfg_filter=use_cfg_filter,
        )  # fmt: skip
        return self.stream_requests(
            requests, sizes, verbose, batch=isinstance(text, (list, tuple)), on_progress=on_progress
        )

    astream = stream  # the stream supports both `for` and `async for`

    def plan(
        self,
        script: str,
        *,
        split: bool = True,
        seed: int = 0,
        audio_prompt_text: Transcript | None = None,
        pause: float = 0.0,
        closing_tag: bool | None = None,
    ) -> Plan:
        """Show how `generate` would split a script into pieces, without generating.

        Args:
            script: any text.
            split: False gives a plan of one piece, whatever the length.
            seed: seed of the call, from which the seed of each piece is derived.
            audio_prompt_text: transcript of the audio prompt; None for no prompt, "" for one without a transcript.
            pause, closing_tag: see `generate`. With a pause every turn is a piece.

        Returns:
            the pieces in order, each with the text that the model reads and the expected seconds of audio.

        Raises:
            TypeError, ValueError: the script is not a string or has no words, or another argument is invalid.
        """
        options = SpeechOptions(split=split, pause=pause, closing_tag=closing_tag)
        return make_plan(
            script, check_seed(seed), options, self.long_form, self.config,
            transcript=audio_prompt_text, has_prompt=audio_prompt_text is not None,
        )  # fmt: skip

    def run_requests(
        self,
        requests: Sequence[Request | Script],
        verbose: bool = False,
        *,
        warn_of_cuts: bool = True,
        on_progress: Callable[[Progress], Any] | None = None,
        on_chunk: Callable[[Chunk], Any] | None = None,
    ) -> list[Generation]:
        """`generate` for requests that are parsed already. Raises what `generate` raises.

        Args:
            requests: from `longform.parsing.parse_scripts`.
            verbose, on_progress: see `generate`.
            warn_of_cuts: whether to log a warning for audio that `max_tokens` cuts off.
            on_chunk: called in this thread with each chunk as it is generated, before loudness is adjusted.

        Returns:
            one `Generation` per request, in order; `audio` is None if the engine has no codec.
        """
        check_on_progress(on_progress)
        chunks: list[list[np.ndarray]] = [[] for _ in requests]
        self._thread.check_fits(len(requests))
        with steps_bar(verbose, self._frames_per_second / len(requests)) as bar:
            call = call_for(requests, streaming=False, warn_of_cuts=warn_of_cuts, **bar.following(on_progress))
            try:
                self._submit(self._with_codes(requests), call, WHOLE)
                for chunk in call:
                    chunks[chunk.index].append(chunk.audio)
                    if on_chunk is not None:
                        on_chunk(chunk)
            finally:
                call.abort()
        generations = [result for result in call.results if result is not None]
        if len(generations) < len(requests):
            raise RuntimeError("this engine is closed")
        if self.codec is None:
            return generations
        silence = np.zeros(0, dtype=np.float32)  # if the model ended immediately
        sounds = [np.concatenate(pieces or [silence]) for pieces in chunks]
        sounds = at_asked_loudness(sounds, requests, self.sample_rate)
        return [replace(each, audio=sound) for each, sound in zip(generations, sounds, strict=True)]

    def stream_requests(
        self,
        requests: Sequence[Request | Script],
        sizes: ChunkSizes,
        verbose: bool = False,
        *,
        batch: bool = True,
        on_progress: Callable[[Progress], Any] | None = None,
    ) -> AudioStream[Any]:
        """`stream` for requests that are parsed already. Raises what `stream` raises.

        Args:
            requests: from `longform.parsing.parse_scripts`.
            sizes: chunk sizes.
            verbose, on_progress: see `stream`.
            batch: whether to yield (index, chunk), as for a list of texts, instead of chunks.

        Raises:
            ValueError: a request asks for a loudness.
        """
        check_streamable(requests)
        check_on_progress(on_progress)
        check_not_forked(self.device)
        self._thread.check_usable()
        self._thread.check_fits(len(requests))

        def start(is_closed: Callable[[], bool]) -> Call | None:
            encoded: list[Request | Script] = []
            for request in requests:
                if is_closed():
                    return None
                encoded += self._with_codes([request])
            progress = ExitStack()
            bar = progress.enter_context(steps_bar(verbose, self._frames_per_second / len(requests)))
            call = call_for(requests, streaming=True, on_end=progress.close, **bar.following(on_progress))
            self._submit(encoded, call, sizes)
            return call

        return AudioStream(start, batch)

    def _submit(self, requests: Sequence[Request | Script], call: Call, sizes: ChunkSizes) -> None:
        check_not_forked(self.device)
        self._thread.admit(call)
        try:
            self._runner.start(requests, call, sizes)
        except BaseException:
            call.abort()  # stop what has begun
            raise

    def _with_codes(self, requests: Sequence[Request | Script]) -> list[Request | Script]:
        """Encode the audio prompts of requests. In the caller's thread: it can take seconds, and decode steps go on."""
        with self._modes():
            return [request.encode_prompt(self.codec) for request in requests]

    def close(self) -> None:
        """Abort running requests and end the engine's thread. Later calls that need the model raise RuntimeError."""
        self._closed()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"<Engine {self._name or 'own weights'}: {dtype} on {self.device}, {self.max_slots} slots>"

    @property
    def active_requests(self) -> int:
        """Number of requests that run or wait. An aborted request counts until the current launch has ended."""
        return self._thread.active

    @property
    def usable(self) -> bool:
        """Whether the engine accepts calls: it is not closed, and its device has not failed."""
        return self._thread.usable

    def observe_launches(self, observer: Callable[[int, int, float], None]) -> None:
        """Register a function that is called after each launch of decode steps, for metrics. Replaces an earlier one.

        Args:
            observer: called in the engine's thread with the number of decode steps, the number of requests in the
                batch, and the seconds since the previous launch. If it raises, that is logged and it is called no more.

        Raises:
            TypeError: it cannot be called.
            RuntimeError: the engine is closed or has failed.
        """
        if not callable(observer):
            raise TypeError(f"observer must be a function of steps, requests and seconds, got {shown(observer)}")
        self._thread.run(partial(setattr, self._thread.scheduler, "on_launch", observer))

    @property
    def max_slots(self) -> int:
        """Number of requests that can run concurrently."""
        return self._thread.scheduler.runner.max_slots

    def load_audio(self, audio_path: str | Path | tuple[np.ndarray, int]) -> torch.Tensor:
        """Encode audio for use as an audio prompt.

        Args:
            audio_path: path of an audio file, or (waveform [samples] float32 in [-1, 1], sample rate in Hz).

        Returns:
            codes [P, C] int64 on the CPU, P frames of C channels.

        Raises:
            FileNotFoundError: there is no such file.
            TypeError: neither a path nor a pair.
            ValueError: the audio is unreadable, empty or too long for the model; or the engine has no codec.
        """
        capacity, codec = self.max_rows, self._require_codec()
        audio = str(audio_path) if isinstance(audio_path, os.PathLike) else audio_path
        if not isinstance(audio, (str, tuple)):
            raise TypeError(f"audio_path must be a path or a pair (waveform, sample_rate), got {shown(audio)}")
        prompt = read_sample(audio, self.config, lambda: codec, capacity)
        with self._modes():
            return codec.encode(prompt, codec.sample_rate).cpu()

    def teacher_forced_logits(self, text: str, codes: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Compute the logits of given codes, for research: losses, divergences between models, alignments.

        Runs one decode step per frame in the engine's thread. Other requests wait until it has finished.

        Args:
            text: the script, after the transcript of the audio prompt if there is one. It is not split into pieces.
            codes: [T, C] integers: the codes of the audio prompt, if any, followed by `Generation.codes`.

        Returns:
            logits [2, T, C, V] float32 on the CPU; index 0 is unconditional, index 1 conditional on the text.
            [1, t, c] are the logits for `codes[t, c]`, before guidance, temperature and filters. For the published Dia
            one second of audio takes 6.4 MB.

        Raises:
            TypeError: `text` is not a string or `codes` are not integers.
            ValueError: the text is empty or too long, or the codes have a wrong shape, range or length.
            RuntimeError: the engine is closed, or the process was forked from one in which an engine had worked.
        """
        ids = encode_text(text, self.config.encoder.max_position_embeddings, self.config.encoder.vocab_size)
        forced = checked_codes(codes, self.config)
        most = self.max_rows - 1 - self.config.max_delay
        if len(forced) > most:
            raise ValueError(f"codes must have at most {most} frames, got {len(forced)}")
        check_not_forked(self.device)
        return self._thread.run(lambda: teacher_forced_logits(self.model, ids, forced))

    def save_audio(self, path: str | Path, audio: np.ndarray) -> None:
        """Write audio to a file, atomically: an error leaves no partial file, and an existing file unchanged.

        Args:
            path: the extension selects the format: .wav or .flac (16 bits), .ogg or .mp3. An existing file is replaced.
            audio: [samples] float32 at `sample_rate`. Samples outside [-1, 1] are clipped, with a warning.

        Raises:
            FileNotFoundError: the folder does not exist.
            TypeError: `audio` is not an array of floating point numbers.
            ValueError: unknown extension; empty audio, NaN or infinity; or the engine has no codec, hence no sample
                rate.
            OSError: the file cannot be written.
        """
        write_audio(path, audio, self.sample_rate)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an Engine cannot be copied or pickled: it holds a device's memory and locks; load one in each process"
        )

    def _parse(self, text: Text, sampling: Mapping[str, Any], **arguments: Any) -> list[Request | Script]:
        """Check the arguments of `generate` or `stream` and convert them to requests."""
        return parse_scripts(
            text, sampling, **arguments,
            settings=self.long_form, config=self.config, max_rows=self.max_rows, defaults=self.defaults,
            codec=lambda: self.codec, makes_sound=self.codec is not None,
        )  # fmt: skip

    @property
    def _frames_per_second(self) -> float:
        return self.codec.sample_rate / self.codec.hop_length if self.codec else 44100 / 512

    def _require_codec(self) -> Codec:
        if self.codec is None:
            raise ValueError("this engine has no codec; load it with load_dac=True")
        return self.codec
