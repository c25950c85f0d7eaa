"""The Node.js example: the same tokens as ours, logits within the tolerance of function bodies, errors in one line."""

from __future__ import annotations

import base64
import json
import math
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from greedy import BITNET_TINY, PROMPT, PROMPT_IDS, TEXT, TOKENS, TOLERANCE, distance, teacher_forced
from node_examples import find_node, install, run_script
from package_logits import PackageLogits

import bitnet_onnx
from bitnet_onnx.package_format import FORMAT_VERSION

TEMPLATE = (
    "{% for message in messages %}{{ '<s>' + message['role'] + ': ' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant: ' }}{% endif %}"
)
#: Bytes of several tokens a character, spaces at both ends, and what patterns of tokenizers treat apart.
TEXTS = ("In the beginning", "  It's 12345 o'clock!\n\n\tNow ", "日本語 naïve café", "😀👩‍👩‍👧 done", "", "<s>no</s>")
#: Logits for tokens that are read in parts.
READ = """
import { openPackage } from "./open.js";
const [directory, parts] = args;
const { decoder } = await openPackage(directory);
const rows = [];
for (const ids of parts) rows.push(...(await decoder.readAll(ids)));
const encoded = rows.map((row) => Buffer.from(Float32Array.from(row).buffer).toString("base64"));
console.log(JSON.stringify(encoded));
"""


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install("node", tmp_path_factory.mktemp("examples"))


def generate(example: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [find_node(), "generate.js", *map(str, arguments)]
    return subprocess.run(command, cwd=example, capture_output=True, text=True, timeout=120)


def copy_package(folder: Path) -> Path:
    return shutil.copytree(BITNET_TINY, folder / "package")


def read_logits(example: Path, directory: Path, parts: list[list[int]]) -> np.ndarray:
    rows = run_script(example, READ, str(directory), parts)
    return np.stack([np.frombuffer(base64.b64decode(row), np.float32) for row in rows])


def test_the_same_greedy_tokens(example: Path) -> None:
    result = generate(example, BITNET_TINY, PROMPT, "--max-new-tokens", 32, "--json")
    answer = json.loads(result.stdout)
    assert (answer["prompt"], answer["tokens"]) == (list(PROMPT_IDS), list(TOKENS))
    assert (answer["text"], answer["reason"]) == (TEXT, "length")


def test_logits_are_within_the_tolerance_of_function_bodies(example: Path, operator_library: Path) -> None:
    parts = [list(PROMPT_IDS), *([token] for token in TOKENS[:-1])]
    found = read_logits(example, BITNET_TINY, parts)[len(PROMPT_IDS) - 1 :]
    assert distance(found, teacher_forced(library=operator_library)) < TOLERANCE


def test_a_text_longer_than_a_call_reads_the_same(example: Path) -> None:
    """Parts, calls of 64 tokens and keys that move to a larger place change nothing."""
    ids = np.random.default_rng(0).integers(2, 4096, 150)
    found = read_logits(example, BITNET_TINY, [ids[:130].tolist(), ids[130:].tolist()])
    # Both run the bodies, on different releases of ONNX Runtime.
    assert distance(found, PackageLogits(BITNET_TINY)(ids)) < TOLERANCE


def test_text_comes_while_it_is_made(example: Path) -> None:
    command = [find_node(), "generate.js", str(BITNET_TINY), PROMPT, "--max-new-tokens", "900"]
    with subprocess.Popen(command, cwd=example, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(4) == b" of "
        assert process.poll() is None
        process.kill()


def test_a_full_context_ends_the_answer(example: Path) -> None:
    result = generate(example, BITNET_TINY, " the" * 1000, "--max-new-tokens", 50, "--json")
    answer = json.loads(result.stdout)
    assert answer["reason"] == "context"
    assert len(answer["prompt"]) + len(answer["tokens"]) == 1024


def test_a_seed_repeats_a_run(example: Path) -> None:
    options = ("--max-new-tokens", 12, "--temperature", 1, "--top-p", 0.95)
    texts = [generate(example, BITNET_TINY, PROMPT, *options, "--seed", seed).stdout for seed in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]


def test_draws_follow_the_probabilities(example: Path) -> None:
    script = """
    import { Sampler } from "../web/decoder/sampling.js";
    const [logits, options, count] = args;
    const sampler = new Sampler(options);
    sampler.observe(options.seen ?? []);
    console.log(JSON.stringify(Array.from({ length: count }, () => sampler.sample(Float32Array.from(logits)))));
    """
    logits = [0.0, 2.0, 1.0, -1.0]
    drawn = run_script(example, script, logits, {"temperature": 0.5, "seed": 1}, 4000)
    weights = [math.exp(logit / 0.5) for logit in logits]
    for token, count in Counter(drawn).items():
        expected = weights[token] / sum(weights)
        assert abs(count / 4000 - expected) < 4 * math.sqrt(expected / 4000)
    # At temperature 1 the two likeliest have 0.88 of the sum, and the best alone 0.64.
    assert set(run_script(example, script, logits, {"temperature": 1, "topP": 0.8, "seed": 1}, 400)) == {1, 2}
    assert set(run_script(example, script, logits, {"temperature": 1, "topP": 0.6, "seed": 1}, 400)) == {1}
    assert run_script(example, script, logits, {"repetitionPenalty": 4, "seen": [1]}, 1) == [2]


def test_tokens_and_their_text_are_those_of_python(example: Path) -> None:
    script = """
    import { openPackage } from "./open.js";
    const { text } = await openPackage(args[0]);
    const results = args[1].map((each) => {
      const ids = text.encode(each);
      const stream = text.stream(ids.slice(0, 1));
      return { ids, pieces: [...ids.slice(1).map((id) => stream.push(id)), stream.end()] };
    });
    console.log(JSON.stringify(results));
    """
    model = bitnet_onnx.load(BITNET_TINY)
    for text, result in zip(TEXTS, run_script(example, script, str(BITNET_TINY), TEXTS), strict=True):
        assert result["ids"] == list(model.encode(text))
        assert "".join(result["pieces"]) == model.tokenizer.decode(result["ids"])
        assert not any("\ufffd" in piece for piece in result["pieces"])


def test_a_chat_template_is_used(example: Path, tmp_path: Path) -> None:
    package = copy_package(tmp_path)
    (package / "chat_template.jinja").write_text(TEMPLATE)
    result = generate(example, package, "Who is he?", "--chat", "--max-new-tokens", 3, "--json")
    expected = bitnet_onnx.load(package).encode([{"role": "user", "content": "Who is he?"}])
    assert json.loads(result.stdout)["prompt"] == list(expected)
    refused = generate(example, package, "a </s> b", "--chat")
    assert refused.stderr == "generate.js: A message holds </s>, a control token of this model; remove it.\n"


@pytest.mark.zoo
def test_a_real_model_answers(example: Path, zoo_package: Path) -> None:
    result = generate(example, zoo_package, "What is the capital of Japan?", "--chat", "--json")
    answer = json.loads(result.stdout)
    messages = [{"role": "user", "content": "What is the capital of Japan?"}]
    assert answer["prompt"] == list(bitnet_onnx.load(zoo_package).encode(messages))
    assert "Tokyo" in answer["text"]
    assert answer["reason"] == "stop"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no folder", "no such directory"),
        ("no graph", "no bitnet-onnx package: it has no model.onnx"),
        ("no weights", "model.onnx.data is missing beside model.onnx"),
        ("short weights", "model.onnx.data does not belong to model.onnx or is cut off"),
        ("short graph", "model.onnx is no readable ONNX file"),
        ("no tokenizer", "tokenizer.json is missing"),
        ("no JSON", "generation_config.json is not valid JSON"),
        ("later format", f"format version 99, this program reads {FORMAT_VERSION}"),
        ("no sizes", 'architecture.context_length is "many"'),
        ("other model", "vocabulary of 4096, bitnet_onnx.json says 5000"),
    ],
)
def test_damage_is_one_line(example: Path, tmp_path: Path, damage: str, message: str) -> None:
    package = copy_package(tmp_path)
    manifest = json.loads((package / "bitnet_onnx.json").read_text())
    match damage:
        case "no folder":
            package = tmp_path / "elsewhere"
        case "no graph":
            (package / "model.onnx").unlink()
        case "no weights":
            (package / "model.onnx.data").unlink()
        case "short weights":
            (package / "model.onnx.data").write_bytes((package / "model.onnx.data").read_bytes()[:100_000])
        case "short graph":
            (package / "model.onnx").write_bytes((package / "model.onnx").read_bytes()[:-100])
        case "no tokenizer":
            (package / "tokenizer.json").unlink()
        case "no JSON":
            (package / "generation_config.json").write_text("{")
        case "later format":
            manifest["format_version"] = 99
        case "no sizes":
            manifest["architecture"]["context_length"] = "many"
        case "other model":
            manifest["architecture"]["vocab_size"] = 5000
    if damage in ("later format", "no sizes", "other model"):
        (package / "bitnet_onnx.json").write_text(json.dumps(manifest))
    result = generate(example, package, PROMPT)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((BITNET_TINY,), "Expected PACKAGE and PROMPT"),
        ((BITNET_TINY, "a", "--chat"), "no chat template"),
        ((BITNET_TINY, " the" * 1100), "The context is full: the prompt has 1101 tokens"),
        ((BITNET_TINY, "a", "--temperature", "hot"), '--temperature is "hot"'),
        ((BITNET_TINY, "a", "--top-p", "2"), "top-p is 2, expected a number above 0 and at most 1"),
        ((BITNET_TINY, "a", "--max-new-tokens", "0"), "longest answer is 0"),
        ((BITNET_TINY, "a", "--beams", "4"), "--beams"),
    ],
)
def test_wrong_arguments_are_one_line(example: Path, arguments: tuple[object, ...], message: str) -> None:
    result = generate(example, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_binding_registers_no_operator_library(example: Path) -> None:
    """docs/deploy/node.md says so; when this fails, the library can be used and the page has to change."""
    script = """
    import { createRequire } from "node:module";
    const require = createRequire(import.meta.url);
    const folder = `onnxruntime-node/bin/napi-v6/${process.platform}/${process.arch}`;
    const binding = require(`./node_modules/${folder}/onnxruntime_binding.node`);
    console.log(JSON.stringify([Object.keys(binding), Object.getOwnPropertyNames(binding.InferenceSession.prototype)]));
    """
    functions, methods = run_script(example, script.replace("import.meta.url", "process.cwd() + '/'"))
    assert sorted(functions) == ["InferenceSession", "initOrtOnce", "listSupportedBackends"]
    assert not [name for name in methods if "ustom" in name or "ibrary" in name or "egister" in name]


def test_lock_files_name_no_registry() -> None:
    for name in ("node", "web"):
        folder = Path(__file__).parents[2] / "examples" / name
        lock = json.loads((folder / "package-lock.json").read_text())
        assert not [path for path, entry in lock["packages"].items() if "resolved" in entry]
        assert all("integrity" in entry for path, entry in lock["packages"].items() if path)
