"""The command line: parses arguments, calls one function and prints its result. Holds no logic of its own."""

import argparse
import difflib
import io
import json
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from intlm import config as configuration
from intlm import flags, plugins
from intlm.errors import INTERNAL, ConfigError, IntlmError
from intlm.export import FORMATS
from intlm.simulate.targets import TARGETS
from intlm.version import INFERENCE_VERSION, TRAINING_VERSION, __version__

INTERRUPTED = 130
TRACEBACK = "INTLM_TRACEBACK"  # set: the traceback of an internal error is printed, not written to a file


def _train(args: argparse.Namespace) -> int:
    from intlm import distributed
    from intlm.training import configure, train

    directory = args.run_dir or Path("runs") / args.config.stem
    config = configure(args.config, configuration.overrides_from(args), directory, args.resume, args.finish_now)
    place = distributed.place(distributed.Place(args.coordinator, args.processes, args.process), os.environ)
    if (place or args.supervise) and not distributed.is_worker():
        return distributed.supervise(args.given, directory, args.supervise)
    if distributed.is_worker():
        distributed.end_with_parent()
    if place:
        distributed.join(place, directory)
    done = train(config, directory, args.resume, args.start, args.finish_now)
    if not distributed.Processes().writes:
        return 0 if done else INTERRUPTED
    if done:
        print(f"run: {directory}\ncurve: {directory / 'learning_curve.png'}\nnext: intlm generate {directory}")
        return 0
    # The saved configuration, which includes the values of flags.
    command = ["intlm", "train", str(directory / "config.toml"), "--run-dir", str(directory), "--resume"]
    hint = "with --finish-now beside --resume, it ends after a last stretch in which its step falls to nothing"
    _say_last(f"{hint}\nstopped and saved; resume with: {shlex.join(command)}")
    return INTERRUPTED


def _prepare(args: argparse.Namespace) -> int:
    from intlm.data.prepare import corpora
    from intlm.data.report import report, summary

    config = configuration.load(args.config, configuration.overrides_from(args))
    for _, corpus in corpora(config.data):
        print(summary(corpus))
        if args.report:
            path = corpus.directory / "lengths.png"
            print(f"\n{report(corpus, path)}\n\npicture: {path}")
        print(f"{corpus.directory}: {corpus.tokenizer.vocab_size} tokens in the vocabulary ({corpus.tokenizer.name})")
    return 0


def _train_tokenizer(args: argparse.Namespace) -> int:
    from intlm.data.prepare import train_tokenizer
    from intlm.run import write_whole

    config = configuration.load(args.config, configuration.overrides_from(args))
    tokenizer = train_tokenizer(config.data)
    write_whole(args.out, json.dumps(tokenizer.to_json()))
    print(f"{args.out}: {tokenizer.vocab_size} tokens in the vocabulary ({tokenizer.name})")
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from intlm.evaluation import evaluate_run

    result = evaluate_run(args.run, args.text, args.split, args.batch, args.wikitext, args.documents, args.picture)
    if args.json:
        print(json.dumps(result.whole.summary()))
    else:
        print(result.text() + (f"\npicture: {args.picture}" if args.picture else ""))
    return 0


def _harness(args: argparse.Namespace) -> int:
    from intlm.harness import main

    main(args.run, args.flags)
    return 0


def _generate(args: argparse.Namespace) -> int:
    import codecs

    from intlm.generation import generate
    from intlm.run import load

    prompt = _bytes_of(args.prompt_file) if args.prompt_file else os.fsencode(args.prompt)
    written = generate(load(args.run), prompt, args.tokens, args.temperature, args.top_k, args.sample_seed)
    # UTF-8 whatever the terminal's locale; a character is printed once its last byte is there.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    print(decoder.decode(prompt), end="", flush=True)
    for some in written:
        print(decoder.decode(some), end="", flush=True)
    print(decoder.decode(b"", final=True))
    return 0


def _bytes_of(path: Path) -> bytes:
    """The bytes of a file or a pipe."""
    from intlm.data import files

    return path.read_bytes() if path.is_fifo() else files.read(path)


def _export(args: argparse.Namespace) -> int:
    from intlm.export import export

    out = export(args.run, flags.chosen(args, "to", FORMATS), args.out or args.run / "exports" / args.to)
    print(out)
    return 0


def _simulate(args: argparse.Namespace) -> int:
    report = flags.chosen(args, "on", TARGETS).simulate(args.run, args.text, args.tokens)
    print(json.dumps(report.summary()) if args.json else report.text())
    return 0 if report.same_bits else 1


def _inspect(args: argparse.Namespace) -> int:
    from intlm.inspection import inspect

    print(inspect(args.run))
    return 0


def _runs(args: argparse.Namespace) -> int:
    from intlm.following import runs

    result = runs(args.directory)
    print(json.dumps(result.summary()) if args.json else result.text())
    return 0


def _compare(args: argparse.Namespace) -> int:
    from intlm.following import compare

    comparison = compare(args.runs, args.reference, args.picture)
    print(json.dumps(comparison.summary()) if args.json else f"{comparison.text()}\npicture: {comparison.picture}")
    return 0


def _sweep(args: argparse.Namespace) -> int:
    from intlm.sweep import sweep

    result = sweep(
        args.file, configuration.overrides_from(args), jobs=args.jobs, only=args.only, seeds=args.seeds,
        runs=args.runs, out=args.out, drawn=args.picture,
    )  # fmt: skip
    print(result.text())
    if result.stopped:
        _say_last(f"stopped and saved; resume with: {shlex.join(['intlm', *args.given])}")
        return INTERRUPTED
    return IntlmError.exit_code if result.failures else 0


def _bench(args: argparse.Namespace) -> int:
    from intlm.bench import bench

    config = configuration.load(args.config, configuration.overrides_from(args))
    result = bench(config, args.config.stem, args.rounds, args.picture)
    if args.json:
        print(json.dumps(result.summary()))
    else:
        print(result.text() + (f"\npicture: {args.picture}" if args.picture else ""))
    return 0


def _from(low: int, high: int = configuration.INT32_MAX) -> Callable[[str], int]:
    """The type of a flag: a whole number from `low` to `high`."""

    def number(text: str) -> int:
        if not text.isdecimal() or len(text) > 20 or not low <= int(text) <= high:
            shown = configuration.shown(text)
            raise argparse.ArgumentTypeError(f"{shown}: expected a whole number from {low} to {high}")
        return int(text)

    return number


def parser() -> argparse.ArgumentParser:
    """The commands and their flags."""
    top = argparse.ArgumentParser(prog="intlm", description="Pretrain language models in integers.", allow_abbrev=False)
    version = f"intlm {__version__}, inference version {INFERENCE_VERSION}, training version {TRAINING_VERSION}"
    top.add_argument("--version", action="version", version=version)
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    trained = "a run's directory, such as runs/quickstart, or an export's"
    text = "a text, in any form that data.train takes (default: the held-out split)"

    def command(name: str, call: object, help: str, among: Any = commands) -> argparse.ArgumentParser:
        made = among.add_parser(name, help=help, description=help, allow_abbrev=False)
        made.set_defaults(call=call)
        about = "a Python file that adds optimizers or other parts; repeatable"
        made.add_argument("--plugin", action="append", metavar="FILE", help=about)
        return made

    made = command("prepare", _prepare, "Tokenize the text of a config into shards.")
    made.add_argument("config", type=Path, metavar="CONFIG", help="a TOML file, such as configs/quickstart.toml")
    made.add_argument("--report", action="store_true", help="also show tokens and text, and plot document lengths")
    configuration.add_arguments(made)

    about = "Train a tokenizer by itself, for instance to share it between corpora."
    inner = commands.add_parser("tokenizer", help=about, description=about, allow_abbrev=False)
    inner_commands = inner.add_subparsers(title="commands", required=True, metavar="COMMAND")
    made = command("train", _train_tokenizer, "Train a config's tokenizer on its training text.", inner_commands)
    made.add_argument("config", type=Path, metavar="CONFIG", help="a TOML file, such as configs/minipile.toml")
    made.add_argument(
        "--out", type=Path, default=Path("tokenizer.json"), metavar="FILE", help="file (default: tokenizer.json)"
    )
    configuration.add_arguments(made)

    made = command("train", _train, "Pretrain the model of a config; prepares its text first.")
    made.add_argument("config", type=Path, metavar="CONFIG", help="a TOML file, such as configs/quickstart.toml")
    made.add_argument("--run-dir", type=Path, metavar="DIR", help="the run's directory (default: runs/CONFIG's name)")
    begin = made.add_mutually_exclusive_group()
    begin.add_argument("--resume", action="store_true", help="resume from the run's last checkpoint")
    begin.add_argument(
        "--from", type=Path, dest="start", metavar="RUN", help="start with the weights of another run or of an export"
    )
    made.add_argument(
        "--minutes", dest="train.minutes", metavar="N", help="train for N minutes; with --resume: for N more"
    )
    about = "with --resume: let the step fall to zero over a last stretch, and end the run"
    made.add_argument("--finish-now", action="store_true", help=about)
    made.add_argument("--supervise", action="store_true", help="restart from the last checkpoint if a process is lost")
    several = made.add_argument_group("several processes", "Start one command per process; srun needs none of these.")
    several.add_argument("--coordinator", metavar="HOST:PORT", help="the address of process 0")
    several.add_argument("--processes", type=_from(1), metavar="N", help="the number of processes")
    several.add_argument("--process", type=_from(0), metavar="I", help="the number of this process, from 0")
    configuration.add_arguments(made)

    made = command("sweep", _sweep, "Train variants of a config and compare them; started again, it continues.")
    made.add_argument("file", type=Path, metavar="FILE", help="a TOML file: base, seeds, keys, [variants], [grid]")
    made.add_argument(
        "--jobs", type=_from(1), default=1, metavar="N", help="runs at the same time; they share the threads"
    )
    made.add_argument("--only", action="append", metavar="VARIANT", help="train only this variant; repeatable")
    made.add_argument("--seeds", type=_from(1), metavar="N", help="use only the first N seeds")
    made.add_argument("--runs", type=Path, metavar="DIR", help="the directory of the runs (default: runs/FILE's name)")
    made.add_argument("--out", type=Path, metavar="FILE", help="the results file (default: results.jsonl in --runs)")
    made.add_argument("--picture", type=Path, metavar="FILE", help="PNG of the curves (default: curves.png in --runs)")
    configuration.add_arguments(made)

    made = command("runs", _runs, "List runs: their progress, their held-out loss, and which are running.")
    made.add_argument(
        "directory", type=Path, nargs="?", default=Path("runs"), metavar="DIR", help="where to look (default: runs)"
    )
    made.add_argument("--json", action="store_true", help="print JSON")

    made = command("compare", _compare, "Compare runs: a table, and a picture of their learning curves.")
    about = "a run's directory, or results of a sweep: FILE.jsonl:STUDY/VARIANT/TEXT; add =LABEL to set its label"
    made.add_argument("runs", nargs="+", metavar="RUN", help=about)
    made.add_argument(
        "--picture", type=Path, default=Path("compare.png"), metavar="FILE", help="PNG to write (default: compare.png)"
    )
    about = "a level to draw, in bits per byte; repeatable (default: the n-grams and gzip of the runs' references.json)"
    made.add_argument("--reference", action="append", default=[], metavar="LABEL=BITS", help=about)
    made.add_argument("--json", action="store_true", help="print one JSON object")

    made = command("evaluate", _evaluate, "Measure bits per byte and perplexity of a run's model on a text.")
    made.add_argument("run", type=Path, metavar="RUN", help=trained)
    made.add_argument("--text", type=Path, metavar="FILE", help=text)
    about = "the split of the run's corpus to measure (default: valid)"
    made.add_argument("--split", choices=("valid", "train"), default="valid", help=about)
    about = "segments evaluated at once; does not change the result (default: automatic)"
    made.add_argument("--batch", type=_from(0), metavar="N", help=about)
    made.add_argument(
        "--wikitext",
        action="store_true",
        help="the text is WikiText: measure each page detokenised, per word and byte of the original file",
    )
    made.add_argument("--documents", type=Path, metavar="FILE", help="write each document's figures as JSON Lines")
    made.add_argument(
        "--picture", type=Path, metavar="FILE", help="plot the loss by position in the document, as a PNG"
    )
    made.add_argument("--json", action="store_true", help="print one JSON object")

    made = command("harness", _harness, "Run tasks of lm-evaluation-harness (lm_eval) with a run's model.")
    made.add_argument("run", type=Path, metavar="RUN", help=trained)
    made.add_argument(
        "flags", nargs=argparse.REMAINDER, metavar="FLAGS", help="flags of lm_eval: --tasks NAMES, --limit N, ..."
    )

    made = command("generate", _generate, "Generate text with a run's model.")
    made.add_argument("run", type=Path, metavar="RUN", help=trained)
    prompt = made.add_mutually_exclusive_group()
    about = "the text to continue (default: none, the start of a document)"
    prompt.add_argument("--prompt", default="", metavar="TEXT", help=about)
    prompt.add_argument("--prompt-file", type=Path, metavar="FILE", help="a file to continue, of any bytes")
    made.add_argument("--tokens", type=_from(0), default=500, metavar="N", help="tokens to generate (default: 500)")
    made.add_argument(
        "--temperature",
        default="0.8",
        metavar="T",
        help="sampling temperature, 1/128 to 256; 0: always the most likely token (default: 0.8)",
    )
    about = "sample from the K most likely tokens; 0: from all (default: 0)"
    made.add_argument("--top-k", type=_from(0), default=0, metavar="K", help=about)
    made.add_argument(
        "--seed",
        type=_from(0, 2**64 - 1),
        default=0,
        dest="sample_seed",
        metavar="N",
        help="random seed; the same seed gives the same text (default: 0)",
    )

    made = command("export", _export, "Write a run's model in another format.")
    made.add_argument("run", type=Path, metavar="RUN", help=trained)
    about = "the directory to write, replacing an earlier export (default: exports/FORMAT in the run)"
    made.add_argument("--out", type=Path, metavar="DIR", help=about)
    flags.add(made, "to", FORMATS, "FORMAT")

    made = command("simulate", _simulate, "Run a model on another machine and compare every bit.")
    made.add_argument("run", type=Path, metavar="RUN", help=trained)
    made.add_argument("--text", type=Path, metavar="FILE", help=text)
    about = "tokens of the text to read (default: 1000)"
    made.add_argument("--tokens", type=_from(1), default=1000, metavar="N", help=about)
    made.add_argument("--json", action="store_true", help="print one JSON object")
    flags.add(made, "on", TARGETS, "TARGET")

    made = command("inspect", _inspect, "Show tables of a run's weights and activations.")
    made.add_argument("run", type=Path, metavar="RUN", help="a run's directory, such as runs/quickstart")

    made = command("bench", _bench, "Measure how fast a config is on this machine, and where the time goes.")
    made.add_argument("config", type=Path, metavar="CONFIG", help="a TOML file, such as configs/quickstart.toml")
    made.add_argument("--json", action="store_true", help="print one JSON object")
    made.add_argument("--picture", type=Path, metavar="FILE", help="plot where an update's time goes, as a PNG")
    made.add_argument(
        "--rounds", type=_from(0), default=None, metavar="N", help="rounds to measure (default: 5, or 3 if slow)"
    )
    configuration.add_arguments(made)
    return top


def _configure_libraries() -> None:
    """Keep compiled programs between commands, so that the first update comes soon.

    Raises ConfigError where JAX refuses what the environment sets.
    """
    os.environ.pop("MPLBACKEND", None)  # Matplotlib refuses to start with a backend that it does not know
    try:
        import jax
    except ValueError as error:
        raise ConfigError(f"JAX does not start: {str(error).strip()}: check the environment variables JAX_*") from None

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
        if home.is_absolute():  # a user without a home has no cache
            jax.config.update("jax_compilation_cache_dir", str(home / "intlm" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code; the README lists them."""
    if arguments is None:
        _in_utf8_mode()
    _open_standard_streams()
    try:
        code = _run(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
    except IntlmError as error:
        code = _failed(error.exit_code, str(error))
    except BrokenPipeError:  # the reader of the output has gone: print nothing, as after SIGPIPE
        code = INTERRUPTED
    except OSError as error:
        code = _failed(IntlmError.exit_code, f"{error.filename or 'input/output'}: {error.strerror or error}")
    except KeyboardInterrupt:
        code = _failed(INTERRUPTED, "interrupted")
        _leave(code)
    except Exception as error:
        code = _mistake_or_fault(error)
    finally:
        _flush()
    if code != INTERRUPTED:  # an interrupted process has stopped with the others, and ends with them
        _leave(code)
    return code


def _run(arguments: list[str]) -> int:
    """Parse a command's arguments and run it. Returns its exit code."""
    for plugin in plugins.asked_for(arguments):
        plugins.load(plugin)
    top = parser()
    try:
        args, unknown = top.parse_known_args(arguments)
    finally:
        sys.stdout.flush()  # help that cannot be written is an error too
    args.given = arguments
    if unknown:
        known = configuration.keys()
        flags = [f"--{name}" for name in known if name in args]
        near = difflib.get_close_matches(unknown[0].partition("=")[0], flags, 1)
        top.error(f"unrecognized arguments: {' '.join(unknown)}" + (f"; did you mean {near[0]}?" if near else ""))
    _configure_libraries()
    return args.call(args)


def _in_utf8_mode() -> None:
    """Start this process again in Python's UTF-8 mode where the locale has another encoding.

    The names of files are UTF-8 then, for Python and for the libraries that read and write them. What is printed keeps
    the locale's encoding.
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    encoding = sys.stdout.encoding if sys.stdout else "ascii"
    os.environ.setdefault("PYTHONIOENCODING", f"{encoding}:replace")
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _open_standard_streams() -> None:
    """Point closed standard streams at /dev/null, and show ? for what the output's encoding does not have."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:  # the next file that is opened would get this number, and the output
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _say_last(message: str) -> None:
    """Print to stdout, or to stderr where stdout has no reader any more; to nobody where both were a terminal that is
    gone."""
    try:
        print(message, flush=True)
    except OSError:
        with suppress(OSError):
            print(message, file=sys.stderr, flush=True)


def _failed(code: int, message: str) -> int:
    """Say why a command failed. Returns its exit code."""
    with suppress(OSError):
        print(f"intlm: {message}", file=sys.stderr)
    return code


def _mistake_or_fault(error: Exception) -> int:
    """Report an exception that no part of intlm expected. Returns the exit code."""
    message = str(error).strip().split("\n")[0][:300]
    if isinstance(error, MemoryError) or any(sign in message for sign in ("RESOURCE_EXHAUSTED", "start new thread")):
        return _failed(IntlmError.exit_code, f"not enough memory: {message or 'ask for less at once'}")
    if "Unable to initialize backend" in message:
        return _failed(IntlmError.exit_code, f"JAX_PLATFORMS = {os.environ.get('JAX_PLATFORMS')}: {message}")
    written = "".join(traceback.format_exception(error))
    where = f"set {TRACEBACK}=1 to see the traceback"
    with suppress(OSError):
        if os.environ.get(TRACEBACK):
            print(written, end="", file=sys.stderr)
            where = "the traceback is above"
        else:
            descriptor, path = tempfile.mkstemp(prefix="intlm-traceback-", suffix=".txt")
            with open(descriptor, "w", encoding="utf-8", errors="replace") as file:
                file.write(f"intlm {__version__}, Python {sys.version}\n{shlex.join(sys.argv)}\n{written}")
            where = f"the traceback is in {path}"
    fault = f"internal error: {type(error).__name__}: {message}"
    return _failed(INTERNAL, f"{fault}: please report it to the maintainers of intlm; {where}")


def _flush() -> None:
    """Flush the output; discard what cannot be written, or Python would complain about it at its exit."""
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _leave(code: int) -> None:
    """End a process of a run of several at once where it failed: JAX would wait for the others, which may be gone."""
    distributed = sys.modules.get("intlm.distributed")
    if code and distributed and distributed.is_worker():
        distributed.leave(code)


if __name__ == "__main__":
    sys.exit(main())
