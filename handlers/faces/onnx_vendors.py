"""ONNX Runtime, onnx and insightface's model zoo: files opened, and what really runs.

With pixels (cv2) the only door to them. They load when a model does, never with this module.
"""

import importlib
import logging
import os
from pathlib import Path
from typing import Any

from daemon.cores import usable_cores
from daemon.errors import ConfigError
from handlers.lanes.memory import HOST

log = logging.getLogger(__name__)

_INT8_OPERATORS = {"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"}


def vendor(name: str) -> Any:
    """Return a module of another project's.

    Raises:
        ConfigError: it is not installed, or broken.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"{name} cannot be imported ({error}); install inferd with one of its extras, "
            "cpu or gpu"
        ) from error


def available_providers() -> list[str]:
    """Return what ONNX Runtime was built with, best first."""
    found: list[str] = vendor("onnxruntime").get_available_providers()
    return found


def device_number(device: str) -> str:
    """Return which GPU a device names; the first where it names none."""
    return device.partition(":")[2] or "0"


def providers(device: str) -> list[Any]:
    """Return what a session is asked to run on, in order."""
    if device == HOST or "CUDAExecutionProvider" not in available_providers():
        return ["CPUExecutionProvider"]
    options = {
        "device_id": device_number(device),
        # Convolutions would round to TF32 and still call themselves fp32.
        "use_tf32": "0",
        # By default every convolution tries all its algorithms at each new size of a batch.
        "cudnn_conv_algo_search": "HEURISTIC",
        # By default the arena doubles: memory that torch beside it would need.
        "arena_extend_strategy": "kSameAsRequested",
    }
    return [("CUDAExecutionProvider", options), "CPUExecutionProvider"]


def session_options() -> Any:
    """Return options under which a session's threads sleep while there is nothing to do.

    By default they spin between two operators, on cores that the decoders and we ourselves need:
    on two cores a detection took 1.6 times the processor time, and as much longer.
    """
    options = vendor("onnxruntime").SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    cores = usable_cores()
    if cores < (os.cpu_count() or 1):
        # It counts the machine's, and of those it may not use it would stand in its own way.
        options.intra_op_num_threads = cores
    return options


def actual_device(session: Any, asked: str, *, require_gpu: bool) -> str:
    """Return where the session runs, which ONNX Runtime decides without a word.

    Raises:
        ConfigError: a GPU was demanded, or named, and it is not that.
    """
    provider = session.get_providers()[0]
    if provider == "CUDAExecutionProvider":
        return f"cuda:{session.get_provider_options()[provider].get('device_id', '0')}"
    available = ", ".join(available_providers())
    if require_gpu or asked.startswith("cuda"):
        raise ConfigError(
            f"INFERD_DEVICE={asked}, INFERD_REQUIRE_GPU={str(require_gpu).lower()}: ONNX Runtime "
            f"runs on {provider} (it offers: {available}); install inferd with the gpu extra"
        )
    if asked == "auto" and "CUDAExecutionProvider" in available:
        log.warning("ONNX Runtime could not start CUDA and runs on %s", provider)
    return str(provider).removesuffix("ExecutionProvider").lower()


def open_model(path: Path, task: str, device: str) -> Any:
    """Return insightface's model of a file, on a session of its own.

    Args:
        path: the ONNX file.
        task: insightface's word for what it should do: detection, recognition.
        device: where it is to run.

    Raises:
        ConfigError: the file is no such model.
    """
    zoo = vendor("insightface.model_zoo")
    try:
        # One session for the one size we use; insightface would make a second one, a copy.
        model = zoo.get_model(
            str(path),
            providers=providers(device),
            sess_options=session_options(),
            static_shape_sessions=False,
        )
    except Exception as error:
        # Whatever a file that is no model raises: protobuf's, ONNX Runtime's, assertions.
        reason = str(error) or type(error).__name__
        raise ConfigError(f"{path} is no model that insightface can load: {reason}") from error
    found = getattr(model, "taskname", "nothing that insightface knows")
    if found != task:
        raise ConfigError(f"{path} is no model for face {task}: its shape says {found}")
    return model


def takes_any_number(session: Any) -> bool:
    """Return whether the file itself says that any number of pictures may be run together."""
    values = (*session.get_inputs(), *session.get_outputs())
    return not any(isinstance(value.shape[0], int) for value in values)


def open_batched(path: Path, device: str) -> Any:
    """Return a session of a file that takes any number of pictures, whatever the file says.

    Published detectors say that they take one picture, and recognisers that they give one vector;
    what they are made of takes more. Whether the answers are right must be tried.

    Raises:
        Exception: ONNX Runtime's or onnx's; the model is not made so.
    """
    onnx = vendor("onnx")
    model = onnx.load(str(path))
    # What was derived for one picture.
    del model.graph.value_info[:]
    weights = {tensor.name for tensor in model.graph.initializer}
    takes = [value for value in model.graph.input if value.name not in weights]
    for number, value in enumerate((*takes, *model.graph.output)):
        # The rows of a detector's outputs need not be as many as the pictures.
        name = "pictures" if number < len(takes) else f"rows_{number}"
        value.type.tensor_type.shape.dim[0].dim_param = name
    return vendor("onnxruntime").InferenceSession(
        model.SerializeToString(), session_options(), providers=providers(device)
    )


def output_names(path: Path) -> list[str]:
    """Return what a model's file calls its outputs; none where it is no model."""
    return [value.name for value in _outputs(path)]


def output_width(path: Path) -> int | None:
    """Return how many numbers a model's first output has for one input; None: it does not say."""
    for value in _outputs(path)[:1]:
        shape = value.type.tensor_type.shape.dim
        if shape and shape[-1].dim_value > 0:
            return int(shape[-1].dim_value)
    return None


def _outputs(path: Path) -> list[Any]:
    onnx = vendor("onnx")
    try:
        return list(onnx.load(str(path), load_external_data=False).graph.output)
    except Exception:
        # Whatever protobuf raises; who loads the file says what is wrong with it.
        log.debug("%s is no ONNX file", path, exc_info=True)
        return []


def precision(path: Path) -> str:
    """Return what the graph calculates in, read from the graph itself."""
    onnx = vendor("onnx")
    graph = onnx.load(str(path), load_external_data=False).graph
    if any(node.op_type in _INT8_OPERATORS for node in graph.node):
        return "int8"
    stored = {tensor.data_type for tensor in graph.initializer}
    if onnx.TensorProto.BFLOAT16 in stored:
        return "bf16"
    return "fp16" if onnx.TensorProto.FLOAT16 in stored else "fp32"
