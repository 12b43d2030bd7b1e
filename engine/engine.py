"""Load a model once, then turn scripts into sound."""

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
from .longform.calls import ScriptCall
from .longform.options import AudioPrompts, PerText, SpeechOptions, Text, Transcript, Transcripts
from .longform.parsing import parse_scripts
from .longform.planning.checked_plan import make_plan
from .longform.planning.plan import Plan
from .longform.runner import ScriptRunner, call_for
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

# Audio that nobody listens to meanwhile is decoded in windows too, which bounds the memory and how long the codec holds
# up other requests; their context costs 8 % of the codec's work.
WHOLE = ChunkSizes(256, 256)


class Engine:
    """A Dia model and its codec, ready to speak.

    Attributes:
        config: sizes and special ids of the model.
        weights: by the names of `model.shapes.parameter_shapes`, on `device`.
        model: what computes; its parts may change in any version.
        codec: a `Codec`; None after `load_dac=False`.
        windows: decodes the codes of a stream in windows.
        device, dtype: where and in what the model computes.
        max_rows: decoder rows per slot, the most that `max_tokens` can be.
        defaults: the model's own defaults for `generate`, by name; what is not in it is the reference's.
        long_form: how long scripts are planned.
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
        """Build from weights named as in `parameter_shapes`; `load`, `from_pretrained` and `from_local` read them."""
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
        # None of these knows the engine, or it would never be collected.
        self._modes = partial(computing, self.device, alone=small)
        self._thread = EngineThread(
            self.model, self.windows, limits, self._modes,
            graph=graph, frames_per_second=self._frames_per_second, uses_workers=small and codec is not None,
        )  # fmt: skip
        self._scripts = ScriptRunner(
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
        """Load a model from the hub or a folder, the one that comes with the engine, or make one up.

        Args:
            model: hub id or folder, weights in transformers' or nari-labs' layout; "talker", a small one that comes
                with the engine; or random weights, `synthetic:tiny` and `synthetic:full`.
            quant: "int8", "nf4" (also "4bit"), "nf4-all" or a recipe of one's own, see `recipes.checked_recipe`:
                quantizes while loading. None leaves the weights as they are stored; a quantized checkpoint needs no
                more than that.
            dtype: "float32", "bfloat16" or "float16". Default: on a GPU bfloat16, or float16 where the GPU lacks it; on
                a CPU float32 for a model under 100 million parameters, else bfloat16 if the CPU multiplies it natively.
            device: default "cuda" if there is one, else "cpu".
            codec: hub id, folder or file of the audio codec, or a loaded one. Default: the folder `codec` in the
                model's own folder if there is one, else `descript/dac_44khz`.
            codec_dtype: of the codec's convolutions, as `dtype`; default "float32". Half precision is for GPUs; at full
                size the sound is then off by 1.4 % (bfloat16) or 0.2 % (float16) of its own size.
            load_dac: False leaves the codec out, and `generate` returns codes.
            revision: of the hub repository.
            graph: False runs the step's kernels one by one, instead of many steps captured in a CUDA graph. The sound
                is the same; on a CPU there is no graph.
            max_slots: requests that run at the same time; further ones wait. Default: 8 on a CPU; on a GPU as many as
                half of the memory that is free after loading holds. It is allocated as it is used.
            max_waiting: requests that may wait for a slot; beyond that a call raises `EngineFull`. Default: any number.
            max_rows: decoder rows per slot, the most that `max_tokens` can be. Default: all that the model has. Less
                makes a slot smaller: 1200 rows are 14 seconds of the published Dia.

        Raises:
            FileNotFoundError: no such model, or a file of it is missing.
            TypeError: a limit that is not an integer.
            ValueError: a limit out of range, unusable files, an unknown dtype, device or quant, files that are
                quantized otherwise, or an environment variable with a value that it cannot have.
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
        # The files are checked by now and read after the codec: neither a bad file nor a codec that is missing or does
        # not fit should cost the time to read everything.
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
        """`load` with the reference's argument names and its default of float32; errors as there.

        Args:
            model_name: hub id or folder, as `model` of `load`.
            compute_dtype: "float32", "bfloat16" or "float16", or the torch.dtype.
            device, load_dac: as `load`.
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
        """Load from a config.json and one checkpoint file (.safetensors, .pth or .bin), as the reference does.

        A folder `codec` and a generation_config.json beside them are used, as `load` does.

        Args:
            config_path: the config.json.
            checkpoint_path: weights in transformers' or nari-labs' layout.
            compute_dtype, device, load_dac: as `from_pretrained`.

        Raises:
            FileNotFoundError: one of the files is missing.
            ValueError: an unusable file, or weights that do not fit the config; all misfits are listed.
        """
        device, dtype = resolve_device(device), resolve_dtype(compute_dtype)
        source = resolve_files(config_path, checkpoint_path)
        stream = source.stream_weights(dtype=dtype, device=device)
        return cls._of(source, stream, source.open_codec(None, device) if load_dac else None)

    @classmethod
    def _of(
        cls, source: ModelSource, stream: Iterable[tuple[str, Weight]], codec: Codec | None, **options: Any
    ) -> "Engine":
        """With the weights of a stream, each made ready for its device before the next is read."""
        weights = {name: pack_for_device(weight) for name, weight in stream}
        return cls(source.config, weights, codec, defaults=source.defaults, long_form=source.long_form, **options)

    @property
    def sample_rate(self) -> int:
        """Of the sound that `generate` returns, in Hz: 44100 for the published Dia.

        Raises:
            ValueError: the engine was loaded without a codec.
        """
        return self._require_codec().sample_rate

    def prepare(self, slots: int = 1) -> None:
        """Do ahead of the first request what it would otherwise wait for. A server calls this before it listens.

        On a GPU: allocates the memory of `slots` requests at once, compiles the kernels and captures the graphs of
        every batch up to that size, and those of a stream's windows of sound in its default sizes. Larger batches
        still work; the first one allocates and captures anew. On a CPU: reads a text and makes a step for `slots`
        requests, which loads what they need. Waits for a generation that is in progress; changes no result.

        Args:
            slots: requests at once, at least 1.

        Raises:
            TypeError: slots is not an integer.
            ValueError: slots is under 1, or over the engine's `max_slots`.
            torch.OutOfMemoryError: so many do not fit the GPU's memory; it says how many do, and the engine still
                works with those.
            RuntimeError: the engine is closed.
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
        """Turn a script, or a list of scripts at once, into sound. Names and order are the reference's.

        What is left out is the model's default: `Engine.defaults` where it has one ("talker" has, the published Dia has
        not), else the reference's, which is given below. Calls from any threads run at the same time, in the slots of
        the engine; more of them wait, first come, first served. A request gives the same codes alone and in any
        company, with the same seed.

        Args:
            text: the script, with the tags [S1] and [S2] and sounds such as (laughs). Of several scripts a list; an
                iterator is the parts of one, see `stream`.
            max_tokens: decoder rows, prompt frames + 1 + delay included. The reference's default of 3072 stands for the
                model's own limit where that is smaller.
            cfg_scale: strength of guidance by the text; 0 means unguided. 3.0 by default.
            temperature: 0 takes the likeliest token. 1.2 by default.
            top_p: in (0, 1], share of the probability that is drawn from. 0.95 by default.
            use_torch_compile: accepted and without effect: this engine has its own compiled step.
            cfg_filter_top_k: candidates that guidance lets through, None for all. 45 by default; as None is taken, what
                stands for the model's default here is MODEL_DEFAULT.
            audio_prompt: a voice to go on with: a path, integer codes [P, C], or (waveform, sample rate) with samples
                in [-1, 1]. Or one of each speaker, {"S1": ..., "S2": ...}, whose transcripts are given likewise. For a
                list of texts a list of them, None where there is none.
            audio_prompt_path: older name of audio_prompt.
            use_cfg_filter: accepted and without effect, as in the reference.
            verbose: show progress, steps/s and x real time on standard error.
            audio_prompt_text: transcript of the prompt; it is put before the text. An empty one is none.
            seed: in [0, 2^63); the same seed and text give the same sound. None draws one from torch's global
                generator.
            sampling_params: max_tokens, cfg_scale, temperature, top_p, cfg_filter_top_k and min_tokens in one, in place
                of them.
            min_tokens: frames of sound before which the model may not end; 0 by default.
            split: plan a script that is too long to be spoken well (`plan` shows how) in pieces, that run side by side
                and are joined to one sound. max_tokens then counts for each piece. False generates any script as one.
            speed: pace of the speech at the same pitch, from 0.25 to 4; good from 0.75 to 1.5.
            pause: silence between turns in seconds, in addition to the model's own.
            tail_silence: silence at the end in seconds.
            trim_cut_end: whether a sound that max_tokens cuts loses its last frames, which forced rows damage, and
                fades out. Default: if it was planned. The codes stay whole.
            closing_tag: end the text with the tag of who speaks next, which keeps Dia from cutting ends. Default: in
                the pieces of planned scripts, if the model is Dia.
            loudness: of the whole sound in LUFS (ITU-R BS.1770), from -70 to 0; -16 is usual for podcasts. Where its
                true peaks would rise over -1 dBTP it is made less loud, with a warning. Needs the extra `loudness`.
                Default: as the model made it.
            on_progress: called in this thread with a `Progress` after each piece of a planned script: pieces, seconds
                of audio, x real time, time left.
            details: return `Generation` instead of arrays: audio, codes, why it ended, seed, duration.

        For a list of texts, each of max_tokens, cfg_scale, temperature, top_p, cfg_filter_top_k, min_tokens, seed
        and sampling_params is one value for all, or a list with one per text.

        Returns:
            sound [samples] float32, without the prompt; or codes [T, C] int64 if the engine has no codec. A list of
            texts gives a list. Empty if the model ends at once.

        Raises:
            FileNotFoundError, TypeError, ValueError: an argument that cannot work, more texts than `max_slots` and
                `max_waiting` together included, before any work is done.
            EngineFull: more requests would wait than `max_waiting`.
            RuntimeError: the engine is closed; the process was forked from one in which an engine has worked; or a
                loudness is asked for without the extra `loudness`.
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
        """`generate`, with the sound given out as it is made: the chunks joined are the same sound.

        The work is done by the engine's own thread, beside that of other calls, starts when the first chunk is asked
        for and does not wait for the reader, who may play a chunk meanwhile. To give up: `close` the stream, leave a
        `with` over it, drop it, or raise out of the loop over it; its slot is free after the launch that is in
        progress. `AudioStream.result` tells in the end how it ended.

        Args:
            text, ..., closing_tag: as in `generate`, and checked in this call. The text may also be an iterator or an
                asynchronous iterator of strings, as a language model's answer arrives: a piece is begun as soon as a
                sentence or a turn is whole, or at `dia_engine.FLUSH`, whatever there is. A prompt in the form of sound
                is encoded when the first chunk is asked for; codes (see `load_audio`) cost nothing.
            chunk_frames: frames per chunk, 512 samples each for the published codec. Each is decoded together with the
                frames around it that its sound depends on, so that small chunks cost more work. Default: 48, or
                more where a codec depends on so many that this would cost half as much again.
            first_chunk_frames: of the first chunk; from then on chunks double up to chunk_frames, and the last may be
                smaller. Default: 8, or chunk_frames where that is less.
            loudness: None, as it is measured over the whole sound; any other value is refused.
            on_progress: as in `generate`, called in the thread that reads.

        Returns:
            an iterator, and asynchronous iterator, over what `generate` would give in pieces: sound [samples] float32,
            or codes [n, C] int64 if the engine has no codec, none of it empty. For a list of texts (index, piece): the
            pieces of a text in order, those of different texts as they come.

        Raises:
            FileNotFoundError, TypeError, ValueError: an argument that cannot work, more texts than `max_slots` and
                `max_waiting` together included, before any work is done.
            EngineFull: at the first chunk, more requests would wait than `max_waiting`.
            RuntimeError: the engine is closed; or the process was forked from one in which an engine has worked.
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

    astream = stream  # for `async for`: a stream is both kinds of iterator

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
        """The pieces in which `generate` with the same arguments speaks a script, without generating.

        Args:
            script: any text.
            split: False gives a plan of one piece, whatever the length.
            seed: that of the call; each piece gets a seed of its own from it.
            audio_prompt_text: transcript of an audio prompt, if there is one; "" for one without a transcript.
            pause, closing_tag: as in `generate`; with a pause every turn is a piece.

        Returns:
            the pieces in order, each with the text that the model reads and the seconds of sound that are expected.

        Raises:
            TypeError, ValueError: it is no text, or there is nothing in it; or another argument that cannot be.
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
        """What `generate` does behind its checks; errors as there.

        Args:
            requests: checked and parsed, see `longform.parsing.parse_scripts`.
            verbose, on_progress: as in `generate`.
            warn_of_cuts: whether audio that `max_tokens` cut is a warning.
            on_chunk: called in this thread with each part of the sound as it is made, at no loudness yet.

        Returns:
            a `Generation` per request, with `audio` unless the engine has no codec.
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
        silence = np.zeros(0, dtype=np.float32)  # of a model that ends at once
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
        """What `stream` does behind its checks; errors as there.

        Args:
            requests: checked and parsed, see `longform.parsing.parse_scripts`.
            sizes: of the chunks.
            verbose, on_progress: as in `stream`.
            batch: whether the stream gives pairs (index, piece), as for a list of texts.

        Raises:
            ValueError: one asks for a loudness.
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
            if isinstance(call, ScriptCall):
                self._scripts.start(requests, call, sizes)
            else:
                self._thread.submit([each for each in requests if isinstance(each, Request)], call, sizes)
        except BaseException:
            call.abort()  # what has begun
            raise

    def _with_codes(self, requests: Sequence[Request | Script]) -> list[Request | Script]:
        """The requests with their audio prompts encoded, in the caller's thread: it takes seconds, in which others'
        decode steps go on."""
        with self._modes():
            return [request.encode_prompt(self.codec) for request in requests]

    def close(self) -> None:
        """Fail what is running and release the thread. Every call after this raises RuntimeError."""
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
        """Requests that run or wait. One that was given up counts until the launch in progress has ended."""
        return self._thread.active

    @property
    def usable(self) -> bool:
        """Whether calls can work: not closed, and its device has not failed."""
        return self._thread.usable

    def observe_launches(self, observer: Callable[[int, int, float], None]) -> None:
        """Have a function called in the engine's thread after each launch of decode steps, for metrics.

        Args:
            observer: is given decode steps, requests that took part, and seconds since the launch before it.
        """
        self._thread.run(partial(setattr, self._thread.scheduler, "on_launch", observer))

    @property
    def max_slots(self) -> int:
        """Requests that run at the same time."""
        return self._thread.scheduler.runner.max_slots

    def load_audio(self, audio_path: str | Path | tuple[np.ndarray, int]) -> torch.Tensor:
        """Encode audio as a prompt: codes [P, C] int64 on the CPU.

        Args:
            audio_path: a file, or a waveform [samples] float32 in [-1, 1] and its sample rate in Hz.

        Raises:
            FileNotFoundError: no file at the path.
            TypeError: neither a path nor a waveform with its sample rate.
            ValueError: audio that is unreadable, empty or too long for the model; or the engine has no codec.
        """
        capacity, codec = self.max_rows, self._require_codec()
        audio = str(audio_path) if isinstance(audio_path, os.PathLike) else audio_path
        if not isinstance(audio, (str, tuple)):
            raise TypeError(f"audio_path must be a path or a pair (waveform, sample_rate), got {shown(audio)}")
        prompt = read_sample(audio, self.config, lambda: codec, capacity)
        with self._modes():
            return codec.encode(prompt, codec.sample_rate).cpu()

    def teacher_forced_logits(self, text: str, codes: torch.Tensor | np.ndarray) -> torch.Tensor:
        """What the model gives for codes that are there already, for research: losses, divergences, alignments.

        Each frame takes one decode step, in the engine's own thread and dtype; other calls go on when it is done.

        Args:
            text: the script, with the transcript of a prompt before it; not planned into pieces.
            codes: [T, C] integers, of a prompt and what follows it, as `Generation.codes` or from `load_audio`.

        Returns:
            logits [2, T, C, V] float32 on the CPU; [0] without the text, [1] with it. [1, t, c] is what `codes[t, c]`
            was to be drawn from: guidance, temperature and limits are not applied. Of published Dia one second of
            sound takes 6.4 MB.

        Raises:
            TypeError: no text, or no integer codes.
            ValueError: a text that is empty or too long, codes of the wrong shape or range, or too many of them.
            RuntimeError: the engine is closed; or the process was forked from one in which an engine has worked.
        """
        ids = encode_text(text, self.config.encoder.max_position_embeddings, self.config.encoder.vocab_size)
        forced = checked_codes(codes, self.config)
        most = self.max_rows - 1 - self.config.max_delay
        if len(forced) > most:
            raise ValueError(f"codes must have at most {most} frames, got {len(forced)}")
        check_not_forked(self.device)
        return self._thread.run(lambda: teacher_forced_logits(self.model, ids, forced))

    def save_audio(self, path: str | Path, audio: np.ndarray) -> None:
        """Write sound to a file, whole or not at all.

        Args:
            path: its extension decides the format: .wav and .flac with 16 bits, .ogg or .mp3. A file there is replaced.
            audio: [samples] float32 at `sample_rate`; what is beyond [-1, 1] is clipped, with a warning.

        Raises:
            FileNotFoundError: the folder does not exist.
            TypeError: not an array of floating point numbers.
            ValueError: another extension, no samples, NaN or infinity, or no codec to tell the sample rate.
            OSError: the file cannot be written.
        """
        write_audio(path, audio, self.sample_rate)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an Engine cannot be copied or pickled: it holds a device's memory and locks; load one in each process"
        )

    def _parse(self, text: Text, sampling: Mapping[str, Any], **arguments: Any) -> list[Request | Script]:
        """Arguments of `generate` and `stream`, checked."""
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
