"""The frameworks beside rnncore, doing the same work on the same arrays.

Each framework is used as its own
documentation advises: arguments lie ready in the framework's own arrays, the thread count is set,
nothing is converted inside the timed call. A framework is imported when its first contestant is
made, never before, so that the others can be timed without it.

Parameter layouts: rnncore's are PyTorch's (LSTM rows i,f,g,o; GRU rows r,z,n; two biases). ONNX
wants LSTM rows i,o,f,c and GRU rows z,r,h with ``linear_before_reset=1``; JAX gets its matrices
transposed, as its users hold them.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ours
from cases import GATES, Array, Case, Problem
from contestant import Answers, Contestant

# Peer to the import it needs, in the order of the tables.
PEERS = {
    "torch": ("torch",),
    "jax": ("jax",),
    "onnxruntime": ("onnxruntime", "onnx"),
    "openvino": ("openvino", "onnx"),
}
ONNX_OPSET = 17


def missing(peer: str) -> list[str]:
    """Return the modules that a peer needs and this environment lacks."""
    return [name for name in PEERS[peer] if importlib.util.find_spec(name) is None]


def rivals(case: Case) -> Sequence[str]:
    """Return the peers that a case is held against."""
    if case.suite == "grid":
        return tuple(PEERS) if case.work == "inference" else ("torch", "jax")
    if case.suite == "step":
        return ("onnxruntime",)
    beside = ("float64", "ragged", "bidirectional", "denormals", "memory")
    return ("torch",) if case.suite in beside else ()


def sent(problem: Problem, peer: str) -> list[Contestant]:
    """Return the contestants that a peer sends to a case.

    The suite of denormals shows the slowdown of a peer beside ours.
    """
    make = ENTRIES[peer, problem.case.work]
    if problem.case.suite != "denormals":
        return [make(problem)]
    entries = []
    for data, suffix in ours.denormal(problem):
        entry = make(data)
        entry.name += suffix
        entry.expected = ours.training(data).answers()
        entries.append(entry)
    return entries


# ---- PyTorch -------------------------------------------------------------------------------------


def _torch_net(torch: Any, problem: Problem) -> Any:
    case = problem.case
    torch.set_num_threads(case.threads)
    classes = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}
    net = classes[case.cell](
        case.shape.I,
        case.shape.H,
        num_layers=case.num_layers,
        bidirectional=case.bidirectional,
        dtype=getattr(torch, case.dtype),
    )
    net.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in problem.params.items()})
    return net


def torch_inference(problem: Problem) -> Contestant:
    """``net(x)`` in inference mode."""
    torch = importlib.import_module("torch")
    net = _torch_net(torch, problem).eval()
    x = torch.from_numpy(problem.x.copy())

    def run() -> Any:
        with torch.inference_mode():
            return net(x)[0]

    return Contestant("torch", run, lambda: {"y": run().numpy()}, problem.case.flops())


def torch_training(problem: Problem) -> Contestant:
    """``net(x)`` and the gradients of x and of every parameter; packed where rows are ragged."""
    torch = importlib.import_module("torch")
    rnn = torch.nn.utils.rnn
    net = _torch_net(torch, problem)
    x = torch.from_numpy(problem.x.copy()).requires_grad_()
    dy = torch.from_numpy(problem.dy.copy())
    names = ["dx", *(name for name, _ in net.named_parameters())]
    wanted = [x, *net.parameters()]
    lengths = None if problem.lengths is None else torch.from_numpy(problem.lengths)

    def forward() -> Any:
        if lengths is None:
            return net(x)[0]
        packed = rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        return rnn.pad_packed_sequence(net(packed)[0], total_length=problem.steps)[0]

    def run() -> tuple[Any, Any]:
        y = forward()
        return y, torch.autograd.grad(y, wanted, dy)

    def answers() -> Answers:
        y, gradients = run()
        arrays = [gradient.numpy() for gradient in gradients]
        return {"y": y.detach().numpy(), **dict(zip(names, arrays, strict=True))}

    return Contestant("torch", run, answers, problem.case.flops())


# ---- JAX -----------------------------------------------------------------------------------------


def _jax_forward(jax: Any, cell: str) -> Callable[[Any, Any], Any]:
    """Return y (T, B, H) of params and x: the input product over all time, then a scan.

    Params are W (I, G*H), U (H, G*H), and the biases (G*H,).
    """
    jnp, sigmoid = jax.numpy, jax.nn.sigmoid

    def lstm(p: Any, carry: Any, xw: Any) -> Any:
        h, c = carry
        i, f, g, o = jnp.split(xw + h @ p["U"] + p["b_hh"], 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        h = sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    def gru(p: Any, carry: Any, xw: Any) -> Any:
        (h,) = carry
        x_r, x_z, x_n = jnp.split(xw, 3, axis=-1)
        h_r, h_z, h_n = jnp.split(h @ p["U"] + p["b_hh"], 3, axis=-1)
        z = sigmoid(x_z + h_z)
        n = jnp.tanh(x_n + sigmoid(x_r + h_r) * h_n)
        h = z * h + (1 - z) * n
        return (h,), h

    def rnn(p: Any, carry: Any, xw: Any) -> Any:
        h = jnp.tanh(xw + carry[0] @ p["U"] + p["b_hh"])
        return (h,), h

    step = {"lstm": lstm, "gru": gru, "rnn": rnn}[cell]
    members = 2 if cell == "lstm" else 1

    def forward(p: Any, x: Any) -> Any:
        zero = jnp.zeros((x.shape[1], p["U"].shape[0]), x.dtype)
        xw = x @ p["W"] + p["b_ih"]
        return jax.lax.scan(lambda carry, xw_t: step(p, carry, xw_t), (zero,) * members, xw)[1]

    return forward


def _jax_arguments(jax: Any, problem: Problem) -> tuple[Any, Any, Any]:
    w = problem.params
    params = {
        "W": w["weight_ih_l0"].T,
        "U": w["weight_hh_l0"].T,
        "b_ih": w["bias_ih_l0"],
        "b_hh": w["bias_hh_l0"],
    }
    put = {name: jax.numpy.array(np.ascontiguousarray(array)) for name, array in params.items()}
    return put, jax.numpy.array(problem.x), jax.numpy.array(problem.dy)


def jax_inference(problem: Problem) -> Contestant:
    """``lax.scan``, jitted."""
    jax = importlib.import_module("jax")
    params, x, _ = _jax_arguments(jax, problem)
    forward = jax.jit(_jax_forward(jax, problem.case.cell))

    def run() -> Any:
        return forward(params, x).block_until_ready()

    return Contestant("jax", run, lambda: {"y": np.asarray(run())}, problem.case.flops())


def jax_training(problem: Problem) -> Contestant:
    """``lax.scan`` and its reverse-mode derivative, jitted as one function."""
    jax = importlib.import_module("jax")
    params, x, dy = _jax_arguments(jax, problem)
    forward = _jax_forward(jax, problem.case.cell)

    def both(params: Any, x: Any, dy: Any) -> Any:
        y, vjp = jax.vjp(forward, params, x)
        return y, vjp(dy)

    compiled = jax.jit(both)

    def run() -> Any:
        return jax.block_until_ready(compiled(params, x, dy))

    def answers() -> Answers:
        y, (d, dx) = jax.tree.map(np.asarray, run())
        return {
            "y": y,
            "dx": dx,
            "weight_ih_l0": d["W"].T,
            "weight_hh_l0": d["U"].T,
            "bias_ih_l0": d["b_ih"],
            "bias_hh_l0": d["b_hh"],
        }

    return Contestant("jax", run, answers, problem.case.flops())


# ---- ONNX: ONNX Runtime and OpenVINO -------------------------------------------------------------


def _onnx_rows(array: Array, cell: str) -> Array:
    """Reorder the gates of a (G*H, ...) array as ONNX wants them."""
    order = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}[cell]
    gates = array.reshape(GATES[cell], -1, *array.shape[1:])
    return np.ascontiguousarray(gates[list(order)].reshape(array.shape))


def _onnx_model(problem: Problem) -> bytes:
    """Return one recurrent node; as a step it takes the state and returns the new one."""
    onnx = importlib.import_module("onnx")
    case = problem.case
    T, B, I, H = case.shape
    step = case.work == "step"
    weights = {name: _onnx_rows(array, case.cell) for name, array in problem.params.items()}
    both = np.concatenate([weights["bias_ih_l0"], weights["bias_hh_l0"]])
    constants = {"W": weights["weight_ih_l0"], "R": weights["weight_hh_l0"], "b": both}
    states = ["h", "c"][: 2 if case.cell == "lstm" else 1] if step else []
    node = onnx.helper.make_node(
        case.cell.upper(),
        ["x", "W", "R", "b", *(["", *states] if step else [])],
        ["y", *(f"{name}_next" for name in states)],
        hidden_size=H,
        **({"linear_before_reset": 1} if case.cell == "gru" else {}),
    )

    def value(name: str, shape: Sequence[int]) -> Any:
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    graph = onnx.helper.make_graph(
        [node],
        "layer",
        [value("x", (T, B, I)), *(value(name, (1, B, H)) for name in states)],
        [value("y", (T, 1, B, H)), *(value(f"{name}_next", (1, B, H)) for name in states)],
        [onnx.numpy_helper.from_array(array[None], name) for name, array in constants.items()],
    )
    opset = onnx.helper.make_opsetid("", ONNX_OPSET)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    return bytes(model.SerializeToString())


def _session(problem: Problem) -> Any:
    ort = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = problem.case.threads
    options.inter_op_num_threads = 1
    return ort.InferenceSession(_onnx_model(problem), options, providers=["CPUExecutionProvider"])


def onnxruntime_inference(problem: Problem) -> Contestant:
    """``session.run``."""
    session, feed = _session(problem), {"x": problem.x}

    def run() -> Any:
        return session.run(None, feed)[0]

    return Contestant("onnxruntime", run, lambda: {"y": run()[:, 0]}, problem.case.flops())


def onnxruntime_step(problem: Problem) -> Contestant:
    """``session.run`` on one step; the state goes in and comes out, as a stream needs."""
    session = _session(problem)
    B, H = problem.case.shape.B, problem.case.shape.H
    names = [value.name for value in session.get_inputs()]
    zeros = [np.zeros((1, B, H), np.float32) for _ in names[1:]]
    feed: dict[str, Array] = dict(zip(names, [problem.x[:1], *zeros], strict=True))

    def run() -> Array:
        y, *state = session.run(None, feed)
        feed.update(zip(names[1:], state, strict=True))
        return np.asarray(y)

    def answers() -> Answers:
        feed.update(zip(names[1:], zeros, strict=True))
        outputs = []
        for t in range(problem.steps):
            feed["x"] = problem.x[t : t + 1]
            outputs.append(run()[0, 0])
        return {"y": np.stack(outputs)}

    return Contestant("onnxruntime", run, answers, problem.case.flops())


def openvino_inference(problem: Problem) -> Contestant:
    """``request.infer`` that shares its input's memory; float32 arithmetic asked for."""
    # Its import reports over the network, in a forked process; without this module it cannot.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    ov = importlib.import_module("openvino")
    core = ov.Core()
    model = core.read_model(_onnx_model(problem))
    options = {
        "INFERENCE_NUM_THREADS": problem.case.threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    request = core.compile_model(model, "CPU", options).create_infer_request()
    feed = [problem.x]

    def run() -> Any:
        return request.infer(feed, share_inputs=True, share_outputs=True)[0]

    return Contestant("openvino", run, lambda: {"y": run()[:, 0].copy()}, problem.case.flops())


ENTRIES: dict[tuple[str, str], Callable[[Problem], Contestant]] = {
    ("torch", "inference"): torch_inference,
    ("torch", "training"): torch_training,
    ("jax", "inference"): jax_inference,
    ("jax", "training"): jax_training,
    ("onnxruntime", "inference"): onnxruntime_inference,
    ("onnxruntime", "step"): onnxruntime_step,
    ("openvino", "inference"): openvino_inference,
}
