"""Which devices a run gets, what it says of them, and what it says when they are not there."""

import json
import types

import numpy as np
import pytest
import tensorflow as tf

from simclr_tf import Config, strategy, workers
from simclr_tf.errors import ConfigError, DeviceError, WorkerError
from simclr_tf.strategy import describe, is_chief, make_strategy, mirrored, of_all_workers

TWO = {"worker": ["a:1", "b:2"]}


def config(*flags):
    return Config.from_flags(["--dataset=digits", "--train_batch_size=16", "--eval_batch_size=16", *flags])


def there_are(monkeypatch, **counts):
    """This machine has `counts` devices of each kind, as far as the choice can see."""
    monkeypatch.setattr(strategy, "_names", lambda kind: [f"{kind}:{i}" for i in range(counts.get(kind.lower(), 0))])
    tpus = list(range(counts.get("tpu", 0)))
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: tpus if kind == "TPU" else [])


def tf_config(monkeypatch, cluster, task, index):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": task, "index": index}}))


@pytest.mark.parametrize("there, flags, expected", [
    (dict(cpu=1), [], "cpu"),
    (dict(cpu=1, gpu=1), [], "gpu"),
    (dict(cpu=1, gpu=4), [], "mirrored"),
    (dict(cpu=1, gpu=4, tpu=8), [], "tpu"),
    (dict(cpu=1, gpu=4, tpu=8), ["--use_tpu=False"], "mirrored"),
    (dict(cpu=1), ["--tpu_name=grpc://somewhere"], "tpu"),
    (dict(cpu=1), ["--use_tpu=True"], "tpu"),
    (dict(cpu=1, gpu=4), ["--strategy=gpu"], "gpu"),
    (dict(cpu=1, gpu=4), ["--strategy=cpu"], "cpu"),
    (dict(cpu=4), ["--strategy=mirrored"], "mirrored"),
])
def test_choice(monkeypatch, there, flags, expected):
    there_are(monkeypatch, **there)
    assert strategy._kind(config(*flags)) == expected


@pytest.mark.parametrize("there, flags, words", [
    (dict(cpu=1), ["--strategy=gpu"], ["--strategy=gpu", "1 CPU"]),
    (dict(cpu=1), ["--strategy=mirrored"], ["--strategy=mirrored", "1 CPU"]),
    (dict(cpu=1, gpu=2), ["--strategy=tpu"], ["--strategy=tpu", "2 GPU, 1 CPU"]),
    (dict(cpu=1, gpu=2), ["--use_tpu=True"], ["--use_tpu=True", "2 GPU, 1 CPU"]),
    (dict(cpu=2), ["--strategy=multi_worker"], ["TF_CONFIG", "absent", "docs/multi-worker.md", "2 CPU"]),
])
def test_what_is_not_there_is_an_error_that_names_what_is(monkeypatch, there, flags, words):
    there_are(monkeypatch, **there)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(DeviceError) as raised:
        make_strategy(config(*flags))
    assert raised.value.exit_code == 2
    for word in words:
        assert word in str(raised.value)


def test_a_tpu_that_cannot_be_reached(monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError("no route to somewhere")

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", refuse)
    with pytest.raises(DeviceError, match=r"'somewhere' could not be reached: no route to somewhere. There is: .* CPU"):
        make_strategy(config("--tpu_name=somewhere"))


@pytest.mark.parametrize("flags, expected", [
    (["--tpu_name=pod", "--tpu_zone=z", "--gcp_project=p"], ("pod", dict(zone="z", project="p"))),
    (["--use_tpu=True", "--master=grpc://10.0.0.1:8470"], ("grpc://10.0.0.1:8470", dict(zone=None, project=None))),
    ([], ("local", dict(zone=None, project=None))),
])
def test_the_tpu_flags_reach_the_resolver(monkeypatch, flags, expected):
    """With the reference's meaning; a TPU of this machine (TPU VM, Colab) is found without any."""
    there_are(monkeypatch, cpu=1, tpu=8)
    asked, connected = [], []
    monkeypatch.setattr(
        tf.distribute.cluster_resolver, "TPUClusterResolver", lambda name, **kw: asked.append((name, kw)) or "resolver"
    )
    monkeypatch.setattr(tf.config, "experimental_connect_to_cluster", connected.append)
    monkeypatch.setattr(tf.tpu.experimental, "initialize_tpu_system", lambda resolver: None)
    monkeypatch.setattr(tf.distribute, "TPUStrategy", lambda resolver: tf.distribute.get_strategy())
    make_strategy(config(*flags))
    assert asked == [expected]
    assert connected == ([] if expected[0] == "local" else ["resolver"])  # as TensorFlow's guide says of TPU VMs


def test_a_tpu_beyond_this_tensorflow_is_named(monkeypatch):
    there_are(monkeypatch, cpu=1)
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    with pytest.raises(DeviceError, match=r"There is: 1 CPU, a TPU that TensorFlow .* cannot use \(pip install"):
        make_strategy(config("--strategy=tpu"))


@pytest.mark.parametrize("text, words", [
    ("{", "JSON|Expecting"),
    ('{"cluster": {"worker": ["a:1", "b:2"]}}', "task"),
    ('{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 2}}', "index 2"),
    ('{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": "x"}}', "invalid literal"),
    ('{"cluster": {"worker": ["a:1"], "chief": ["b:1"], "ps": ["c:1"]}, "task": {"type": "chief", "index": 0}}',
     "parameter servers"),
    ('["a:1", "b:2"]', "get"),
])
def test_a_wrong_tf_config(monkeypatch, text, words):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(DeviceError, match=f"TF_CONFIG is not what it must be: .*({words})") as raised:
        make_strategy(config())
    assert raised.value.exit_code == 2 and text in str(raised.value)


@pytest.mark.parametrize("cluster, task, index, expected", [
    (TWO, "worker", 0, True), (TWO, "worker", 1, False),
    (TWO | {"chief": ["c:1"]}, "worker", 0, False), (TWO | {"chief": ["c:1"]}, "chief", 0, True),
    (TWO, "evaluator", 0, True), ({"worker": ["a:1"]}, "worker", 0, True), ({}, "worker", 1, True),
])
def test_the_chief(monkeypatch, cluster, task, index, expected):
    tf_config(monkeypatch, cluster, task, index)
    assert is_chief(config()) is expected
    assert is_chief(config("--strategy=cpu"))  # a run of its own, whatever the cluster


@pytest.mark.parametrize("flags, words", [
    (["--mode=eval"], "--mode=train or train_then_eval.*--mode=eval"),
    (["--mode=study"], "--mode=study"),
    (["--max_bad_images=3"], "--max_bad_images=3"),
])
def test_what_several_workers_cannot_do(monkeypatch, flags, words):
    tf_config(monkeypatch, TWO, "worker", 0)
    with pytest.raises(ConfigError, match=words):
        make_strategy(config(*flags))


def test_a_batch_that_does_not_divide(monkeypatch):
    there_are(monkeypatch, cpu=3)
    with pytest.raises(ConfigError, match=r"--train_batch_size must be a multiple of .* 3. .* Use for example 15"):
        make_strategy(config("--strategy=mirrored"))


def test_the_layout_is_described():
    one = make_strategy(config())
    assert describe(one, config()) == "--strategy=auto: CPU: 1 replica on 1 worker (CPU:0), whole batches"
    four = make_strategy(config("--strategy=mirrored"))
    assert describe(four, config("--strategy=mirrored")) == (
        "--strategy=mirrored: MirroredStrategy: 4 replicas on 1 worker (CPU:0, CPU:1, CPU:2, CPU:3), 4 images each"
    )


def test_one_process_asks_nobody():
    assert of_all_workers(mirrored(("CPU:0", "CPU:1")), 7) == [7]
    assert workers.lost_worker(tf.errors.UnavailableError(None, None, "gone")) is None


def test_every_replica_has_its_rows():
    """Replica r of R gets the r-th piece of every global batch, and the rows come back in order."""
    two = mirrored(("CPU:0", "CPU:1"))
    batches = tf.data.Dataset.from_tensor_slices({"x": np.arange(24)}).batch(8)
    distributed = iter(strategy.distribute(two, 8, lambda worker, workers: batches))
    run = strategy.inference(two, None, lambda batch: (batch["x"] * 2,))
    for start in (0, 8, 16):
        batch = next(distributed)
        parts = two.experimental_local_results(batch["x"])
        assert [p.numpy().tolist() for p in parts] == [list(range(start + 4 * r, start + 4 * r + 4)) for r in (0, 1)]
        np.testing.assert_array_equal(run(batch)[0], 2 * np.arange(start, start + 8))


def test_a_lost_worker_is_told_from_other_errors(monkeypatch):
    joined = types.SimpleNamespace(cache_info=lambda: types.SimpleNamespace(currsize=1))
    monkeypatch.setattr(workers, "join", joined)
    message = "Graph execution error:\n\nDetected at node x\n<stack traces unavailable>\nConnection reset by peer"
    gone = tf.errors.UnavailableError(None, None, message)
    error = workers.lost_worker(gone)
    assert isinstance(error, WorkerError) and error.exit_code == 6
    assert "is gone: Connection reset by peer. Start" in str(error)
    assert workers.lost_worker(tf.errors.InvalidArgumentError(None, None, "a bad image")) is None
