"""Where networks run, told by stand-ins: no GPU is needed."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from bids_epvs.errors import UsageError
from bids_epvs.models import device, load, nuclei, parcellation, slices
from bids_epvs.settings import Settings
from bids_epvs.stages import methods, preparation

FULL = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[9,9]")
UNCOPIED = tf.errors.InternalError(None, None, "Failed copying input tensor: Dst tensor is not initialized.")


@pytest.fixture(autouse=True)
def forgotten():
    """`check` speaks once in a process."""
    device.check.cache_clear()
    yield
    device.check.cache_clear()


@pytest.fixture
def gpu(monkeypatch):
    """As if there was one; the list of devices that were chosen."""
    chosen = []
    plain = keras.device

    def chosen_device(name):
        chosen.append(name)
        return plain(name)

    monkeypatch.setattr(device, "gpus", lambda: 1)
    monkeypatch.setattr(keras, "device", chosen_device)
    return chosen


def failing(error, *, times=1):
    """A function that raises at first, then says how often it was called."""
    calls = []

    def call():
        calls.append(None)
        if len(calls) <= times:
            raise error
        return len(calls)

    return call


@pytest.mark.parametrize("error", [FULL, UNCOPIED, RuntimeError("CUDA error: out of memory")])
def test_a_full_gpu_hands_over_to_the_cpu(gpu, caplog, error):
    assert device.with_room("unet", failing(error)) == 2
    assert gpu == ["cpu:0"]
    assert "unet: the GPU has not enough memory" in caplog.text


def test_a_cpu_without_memory_is_no_help(gpu):
    with pytest.raises(tf.errors.ResourceExhaustedError):
        device.with_room("unet", failing(FULL, times=2))


def test_without_a_gpu_nothing_is_tried_again(monkeypatch):
    monkeypatch.setattr(device, "gpus", lambda: 0)
    with pytest.raises(tf.errors.ResourceExhaustedError):
        device.with_room("unet", failing(FULL))


def test_other_errors_are_not_about_memory(gpu):
    with pytest.raises(ValueError, match="shape"):
        device.with_room("unet", failing(ValueError("wrong shape")))
    assert gpu == []


def test_a_gpu_that_is_not_there_is_refused_once_asked_for(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "bids_epvs")
    monkeypatch.setattr(device, "gpus", lambda: 0)
    device.check("cpu")
    assert not caplog.text
    device.check("auto")
    assert "no GPU that could be used" in caplog.text
    with pytest.raises(UsageError, match=r"--device: cuda:3 was asked for.*bids_epvs\[gpu\]"):
        device.check("cuda:3")


@pytest.mark.parametrize(("built", "level"), [(True, "WARNING"), (False, "INFO")])
def test_who_installed_tensorflow_for_gpus_is_warned(monkeypatch, caplog, built, level):
    caplog.set_level(logging.INFO, "bids_epvs")
    monkeypatch.setattr(device, "gpus", lambda: 0)
    monkeypatch.setattr(tf.test, "is_built_with_cuda", lambda: built)
    device.check("auto")
    device.check("auto")
    assert [r.levelname for r in caplog.records] == [level]


def test_a_gpu_is_told(gpu, caplog):
    caplog.set_level(logging.INFO, "bids_epvs")
    device.check("cuda")
    assert "on the GPU" in caplog.text


def test_here_tensorflow_is_asked():
    assert device.gpus() == len(tf.config.list_physical_devices("GPU"))


def test_regions_on_the_cpu_are_of_all_images(gpu, monkeypatch, tmp_path):
    """The images come one by one, and are still there when they are needed again."""
    tries = []

    def predict(images, to_template, *, first, second):
        tries.append([next(images)])
        if len(tries) == 1:
            raise FULL
        return tries[-1] + list(images)

    for module in (parcellation, nuclei, slices):
        monkeypatch.setattr(module, "network", lambda file: None)
    monkeypatch.setattr(nuclei, "predict", predict)
    found = preparation._networks(Settings(output_dir=tmp_path), None)["parcellate"](iter(range(3)), np.eye(4))
    assert (found, gpu) == ([0, 1, 2], ["cpu:0"])


@pytest.fixture
def method(monkeypatch):
    """A method with a network that says how often it was asked; a full GPU at first."""
    monkeypatch.setattr(methods.planes, "by_slices", lambda prepared, run: run(prepared))
    monkeypatch.setattr(methods.explain, "added", lambda spec, prepared, made, parameters: made)
    call = failing(FULL)
    return replace(load("unet"), predict=lambda prepared, parameters: call())


def test_methods_move_to_the_cpu(gpu, method):
    assert methods._predicted(method, SimpleNamespace(spacing=(1.0, 1.0, 1.0)), {}) == 2
    assert gpu == ["cpu:0"]


def test_methods_without_a_network_ask_for_no_gpu(monkeypatch, method):
    monkeypatch.setattr(device, "gpus", lambda: 0)
    prepared = SimpleNamespace(spacing=(1.0, 1.0, 1.0))
    with pytest.raises(UsageError, match="--device"):
        methods._predicted(method, prepared, {}, "cuda")
    plain = replace(method, network=None, predict=lambda prepared, parameters: "found")
    assert methods._predicted(plain, prepared, {}, "cuda") == "found"
