"""Turns a function of JAX into an ONNX graph of integers: it is traced, and each of its primitives becomes a node.

- Values that depend only on constants are computed here. A loop over layers is unrolled.
- Arithmetic is int32, whatever the dtype in JAX: a value has bounds, which show that nothing wraps. A value is
  converted where an operator needs another dtype, and where it may not fit into its dtype in JAX.
- Matrix products are MatMulInteger of int8 by int8: ONNX Runtime's kernel for uint8 by int8 saturates pairs of products
  in int16 on processors that have AVX2 and not VNNI.
- BitShift is for unsigned values, so a value that may be negative is raised by 2^30 before a shift, lowered after it.
- ONNX broadcasts where JAX says so: a value may lack leading axes, or have ones there, and is reshaped only where that
  does not align.
"""

from __future__ import annotations  # NumPy is imported when it is used

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, Union

from intlm.errors import IntlmError
from intlm.lazy import Array, jax, np
from intlm.settings import INT32_MAX

_RAISED = 1 << 30
_CALLS = ("jit", "pjit", "closed_call")
_SAME = {"add": "Add", "sub": "Sub", "mul": "Mul", "max": "Max", "min": "Min"}
_COMPARISONS = {"eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual"}


class NotRecorded(IntlmError):
    """A primitive that has no nodes here, or a value that may leave int32."""


@dataclass(eq=False)
class Value:
    """A value that is known only at run time: int32, int16, int8 or bool in JAX."""

    names: dict[str, str]  # a dtype -> the name of the tensor that holds the value in it
    actual: tuple[int, ...]  # the shape of the tensors, which is broadcast or reshaped to `shape`
    shape: tuple[int, ...]  # the shape in JAX
    low: int
    high: int
    greatest_of: Value | None = None  # the value of which it is the largest element


Known: TypeAlias = Union[Value, "np.ndarray"]


@dataclass
class _Graph:
    """The nodes of an ONNX graph, in order; the same operation on the same inputs is one node."""

    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)  # name -> tensor
    _made: dict[Any, str] = field(default_factory=dict)  # operator, inputs, attributes -> name
    _added: dict[str, tuple[str, np.ndarray]] = field(default_factory=dict)  # a sum -> the value and the constant

    def node(self, operator: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        """Adds a node unless the graph has the same one; returns the name of its result."""
        import onnx

        names = [i if isinstance(i, str) else self.constant(i) for i in inputs]
        key = (operator, *names, *sorted(attributes.items()))
        if key not in self._made:
            self._made[key] = name = f"{operator}_{len(self.nodes)}"
            self.nodes.append(onnx.helper.make_node(operator, names, [name], name=name, **attributes))
        return self._made[key]

    def constant(self, value: np.ndarray) -> str:
        """Adds a constant unless the graph has an equal one; returns its name."""
        import onnx

        key = ("constant", value.dtype, value.shape, value.tobytes())
        if key not in self._made:
            self._made[key] = name = f"constant_{len(self.constants)}"
            self.constants[name] = onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        return self._made[key]

    def cast(self, name: str, dtype: str) -> str:
        """A tensor in another dtype, by the name of NumPy."""
        import onnx

        return self.node("Cast", name, to=getattr(onnx.TensorProto, dtype.upper()))

    def tensor(self, x: Known, dtype: str = "int32", shape: tuple[int, ...] | None = None) -> str:
        """The name of a value in a dtype: aligned with its shape, or of exactly `shape`."""
        if isinstance(x, np.ndarray):
            scalar = shape is None and x.size and (x == x.flat[0]).all()
            return self.constant((x.flat[0] if scalar else x if shape is None else x.reshape(shape)).astype(dtype))
        if dtype not in x.names:
            x.names[dtype] = self.cast(next(iter(x.names.values())), dtype)
        name, wanted = x.names[dtype], x.shape if shape is None else shape
        if x.actual == wanted or (shape is None and _aligned(x.actual, wanted)):
            return name
        if math.prod(x.actual) != math.prod(wanted):
            name = self.node("Expand", name, np.array(x.shape, np.int64))
        return self.node("Reshape", name, np.array(wanted, np.int64))

    def add(self, x: str, constant: np.ndarray) -> str:
        """A tensor plus a constant. For a tensor that is itself such a sum, the two constants are added first."""
        before, sum_ = x, constant.astype(np.int64)
        if x in self._added:
            before, sum_ = self._added[x][0], self._added[x][1] + sum_
            if not _in_int32(int(sum_.min()), int(sum_.max())):
                before, sum_ = x, constant.astype(np.int64)
        if not sum_.any():
            return before
        name = self.node("Add", before, sum_.astype(np.int32))
        self._added[name] = (before, sum_)
        return name

    def finish(self, outputs: Mapping[str, str]) -> None:
        """Names the outputs (name -> tensor), and drops the nodes on which none of them depends."""
        import onnx

        wanted, kept = set(outputs.values()), []
        for node in reversed(self.nodes):
            if node.output[0] in wanted:
                kept.append(node)
                wanted.update(node.input)
        made = {node.output[0] for node in kept}
        named = {tensor: name for name, tensor in outputs.items() if tensor in made}
        for node in kept:
            node.input[:] = [named.get(name, name) for name in node.input]
            node.output[:] = [named.get(name, name) for name in node.output]
        copies = [(named.get(tensor, tensor), name) for name, tensor in outputs.items() if named.get(tensor) != name]
        self.nodes = kept[::-1] + [onnx.helper.make_node("Identity", [tensor], [name]) for tensor, name in copies]
        self.constants = {name: tensor for name, tensor in self.constants.items() if name in wanted}


def _aligned(actual: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether ONNX broadcasts `actual` to `shape`, but for leading ones."""
    extra = max(0, len(actual) - len(shape))
    own = actual[extra:]
    return math.prod(actual[:extra]) == 1 and all(a in (1, s) for a, s in zip(own[::-1], shape[::-1], strict=False))


def _in_int32(low: int, high: int) -> bool:
    return low >= -INT32_MAX - 1 and high <= INT32_MAX


def _bounds(x: Known) -> tuple[int, int]:
    return (x.low, x.high) if isinstance(x, Value) else (int(x.min()), int(x.max()))


class Input(NamedTuple):
    """An input tensor of a graph."""

    dtype: str
    given: tuple[int, ...]  # its shape
    shape: tuple[int, ...]  # the shape of the function's argument, which broadcasts to it
    low: int
    high: int


def record(
    function: Callable[..., tuple[Array, ...]],
    inputs: Mapping[str, Input],
    outputs: Mapping[str, tuple[str, tuple[int, ...]]],
) -> Any:
    """Returns a JAX function as an onnx.GraphProto.

    inputs: its arguments. outputs: its results, each with the dtype and the shape that the graph gives. Raises
    NotRecorded where a primitive cannot be written in ONNX.
    """
    import onnx

    graph = _Graph()
    traced = jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs.values()))
    given: list[Known] = [Value({x.dtype: name}, x.given, x.shape, x.low, x.high) for name, x in inputs.items()]
    results = _Recorder(graph).run(traced, given)
    graph.finish({name: graph.tensor(x, *kind) for x, (name, kind) in zip(results, outputs.items(), strict=True)})

    def described(name: str, dtype: str, shape: tuple[int, ...]) -> Any:
        return onnx.helper.make_tensor_value_info(name, getattr(onnx.TensorProto, dtype.upper()), shape)

    return onnx.helper.make_graph(
        graph.nodes,
        "intlm",
        [described(name, x.dtype, x.given) for name, x in inputs.items()],
        [described(name, *kind) for name, kind in outputs.items()],
        list(graph.constants.values()),
    )


class _Recorder:
    """Walks through a jaxpr. A primitive has a method do_NAME: of the result's shape and dtype in JAX, the inputs, and
    the primitive's parameters."""

    def __init__(self, graph: _Graph) -> None:
        self.graph = graph

    def run(self, closed: Any, arguments: list[Known]) -> list[Known]:
        jaxpr, values = closed.jaxpr, dict[Any, Known]()
        values.update(zip(jaxpr.constvars, map(np.asarray, closed.consts), strict=True))
        values.update(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Known:
            return np.asarray(atom.val, atom.aval.dtype) if hasattr(atom, "val") else values[atom]

        for equation in jaxpr.eqns:
            results = self.equation(equation, [read(atom) for atom in equation.invars])
            values.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, equation: Any, inputs: list[Known]) -> list[Known]:
        name, parameters = equation.primitive.name, equation.params
        if name in _CALLS:
            return self.run(parameters["jaxpr"], inputs)
        if name == "scan":
            return self.scan(equation, inputs)
        if all(isinstance(x, np.ndarray) for x in inputs):
            result = equation.primitive.bind(*inputs, **parameters)
            return list(map(np.asarray, result if equation.primitive.multiple_results else [result]))
        out = equation.outvars[0].aval
        if name in _SAME:
            return [self.arithmetic(name, out.shape, *inputs)]
        if name in _COMPARISONS:
            return [self.compare(name, out.shape, *inputs)]
        method = getattr(self, f"do_{name}", None)
        if method is None:
            raise NotRecorded(f"ONNX: the primitive {name} of JAX has no operator here (intlm/export/recorded.py)")
        return [method(out, *inputs, **parameters)]

    def result(self, name: str, shape: tuple[int, ...], low: int, high: int, *inputs: Known) -> Value:
        """An int32 node's value, `shape` in JAX, whose tensor has the inputs' shapes broadcast."""
        if not _in_int32(low, high):
            raise NotRecorded(f"ONNX: {name}: may be {low} to {high}, beyond int32")
        actual = np.broadcast_shapes(*(self._actual(x) for x in inputs))
        return Value({"int32": name}, actual, shape, low, high)

    @staticmethod
    def _actual(x: Known) -> tuple[int, ...]:
        if isinstance(x, np.ndarray):
            return () if x.size and (x == x.flat[0]).all() else x.shape
        return x.actual if _aligned(x.actual, x.shape) else x.shape

    def arithmetic(self, name: str, shape: tuple[int, ...], x: Known, y: Known) -> Known:
        """add, sub, mul, max, min."""
        (a, b), (c, d) = _bounds(x), _bounds(y)
        products = (a * c, a * d, b * c, b * d)
        low, high = {
            "add": (a + c, b + d),
            "sub": (a - d, b - c),
            "mul": (min(products), max(products)),
            "max": (max(a, c), max(b, d)),
            "min": (min(a, c), min(b, d)),
        }[name]
        if name == "sub" and isinstance(x, Value) and x.greatest_of is y:
            low = 0
        for value, (least, most) in ((x, (c, d)), (y, (a, b))):  # max and min that change nothing
            if isinstance(value, Value) and (
                (name == "max" and most <= value.low) or (name == "min" and least >= value.high)
            ):
                return self._viewed(value, shape)
        if isinstance(x, np.ndarray) and name in ("add", "mul", "max", "min"):
            x, y = y, x
        if isinstance(y, np.ndarray) and name in ("add", "sub"):
            scalar = y.astype(np.int64).flat[0] if self._actual(y) == () else y.astype(np.int64)
            tensor = self.graph.add(self.graph.tensor(x), np.asarray(scalar if name == "add" else -scalar))
        else:
            tensor = self.graph.node(_SAME[name], self.graph.tensor(x), self.graph.tensor(y))
        return self.result(tensor, shape, low, high, x, y)

    def compare(self, name: str, shape: tuple[int, ...], x: Known, y: Known) -> Known:
        """A comparison, as a bool; a constant where the bounds decide it."""
        (a, b), (c, d) = _bounds(x), _bounds(y)
        always = {"eq": a == b == c == d, "lt": b < c, "le": b <= c, "gt": a > d, "ge": a >= d}[name]
        never = {"eq": b < c or a > d, "lt": a >= d, "le": a > d, "gt": b <= c, "ge": b < c}[name]
        if always or never:
            return np.full(shape, always)
        tensor = self.graph.node(_COMPARISONS[name], self.graph.tensor(x), self.graph.tensor(y))
        value = self.result(tensor, shape, 0, 1, x, y)
        return Value({"bool": tensor}, value.actual, shape, 0, 1)

    def do_select_n(self, out: Any, which: Known, *cases: Known) -> Known:
        if isinstance(which, np.ndarray) and which.size and (which == which.flat[0]).all():
            case = cases[int(which.flat[0])]
            return case if isinstance(case, np.ndarray) else self._viewed(case, out.shape)
        first, second = cases
        (a, b), (c, d) = _bounds(first), _bounds(second)
        name = self.graph.node(
            "Where", self.graph.tensor(which, "bool"), self.graph.tensor(second), self.graph.tensor(first)
        )
        return self.result(name, out.shape, min(a, c), max(b, d), which, first, second)

    def do_abs(self, out: Any, x: Value) -> Value:
        name = self.graph.node("Abs", self.graph.tensor(x))
        least = 0 if x.low <= 0 <= x.high else min(abs(x.low), abs(x.high))
        return self.result(name, out.shape, least, max(abs(x.low), abs(x.high)), x)

    def do_neg(self, out: Any, x: Value) -> Known:
        return self.arithmetic("sub", out.shape, np.zeros((), np.int32), x)

    def do_convert_element_type(self, out: Any, x: Value, new_dtype: Any, **_: Any) -> Value:
        dtype = np.dtype(new_dtype)
        if dtype.kind != "i" or dtype.itemsize > 4:
            raise NotRecorded(f"ONNX: a conversion to {dtype}: expected int8, int16 or int32")
        limits = np.iinfo(dtype)
        if limits.min <= x.low and x.high <= limits.max:
            return Value(x.names, x.actual, x.shape, x.low, x.high, x.greatest_of)
        made = self.graph.cast(self.graph.tensor(x), dtype.name)
        actual = self.result(made, x.shape, 0, 0, x).actual
        return Value({dtype.name: made}, actual, x.shape, int(limits.min), int(limits.max))

    def do_shift_right_arithmetic(self, out: Any, x: Known, by: Known) -> Value:
        """By what JAX defines: 0 to 31."""
        (low, high), (least, most) = _bounds(x), _bounds(by)
        least, most = max(0, least), min(31, most)
        if low >= 0:
            name = self._unsigned_shift(x, by, "RIGHT")
            return self.result(name, out.shape, low >> most, high >> least, x, by)
        if isinstance(by, Value) or low < -_RAISED or high >= _RAISED or most > 30:
            raise NotRecorded(f"ONNX: a shift of {low} to {high} by {least} to {most}: expected less than 2^30 in size")
        raised = self.graph.add(self.graph.tensor(x), np.array(_RAISED))
        value = Value({"int32": raised}, self._actual(x), out.shape, 0, INT32_MAX)
        shifted = self._unsigned_shift(value, by, "RIGHT")
        name = self.graph.add(shifted, np.array(-(_RAISED >> most)))
        return self.result(name, out.shape, low >> most, high >> most, x, by)

    def do_shift_left(self, out: Any, x: Known, by: Known) -> Known:
        (low, high), (least, most) = _bounds(x), _bounds(by)
        least, most = max(0, least), min(31, most)
        if isinstance(by, np.ndarray):
            return self.arithmetic("mul", out.shape, x, np.asarray(1 << by.astype(np.int64)))
        if low < 0:
            raise NotRecorded(f"ONNX: a shift of {low} to {high}: expected no negative value")
        return self.result(self._unsigned_shift(x, by, "LEFT"), out.shape, low << least, high << most, x, by)

    def _unsigned_shift(self, x: Known, by: Known, direction: str) -> str:
        """Of int32 values >= 0."""
        shifted = self.graph.node(
            "BitShift", self.graph.tensor(x, "uint32"), self.graph.tensor(by, "uint32"), direction=direction
        )
        return self.graph.cast(shifted, "int32")

    def do_clz(self, out: Any, x: Value) -> Value:
        """31 less the place of the leading bit: the powers of two from 1 that are above."""
        if x.low < 0 or x.shape:
            raise NotRecorded("ONNX: clz: expected one value that is not negative")
        powers = 1 << np.arange(x.low.bit_length(), x.high.bit_length())
        reached = self.graph.node("GreaterOrEqual", self.graph.tensor(x, shape=(1,)), powers.astype(np.int32))
        above = self.graph.node("ReduceSum", self.graph.cast(reached, "int32"), np.array([0], np.int64))
        left = self.graph.node("Sub", np.array(32 - x.low.bit_length(), np.int32), above)
        low, high = 32 - x.high.bit_length(), 32 - x.low.bit_length()
        return Value({"int32": left}, (1,), (), low, high)

    def do_and(self, out: Any, x: Known, y: Known) -> Value:
        (a, b), (c, d) = _bounds(x), _bounds(y)
        if a < 0 and c < 0:
            raise NotRecorded("ONNX: and: expected a side that is not negative")
        name = self.graph.node("BitwiseAnd", self.graph.tensor(x), self.graph.tensor(y))
        return self.result(name, out.shape, 0, min(most for least, most in ((a, b), (c, d)) if least >= 0), x, y)

    def do_reduce_sum(self, out: Any, x: Value, axes: tuple[int, ...], **_: Any) -> Value:
        count = math.prod(x.shape[axis] for axis in axes)
        return self._reduce("ReduceSum", out, x, axes, x.low * count, x.high * count)

    def do_reduce_max(self, out: Any, x: Value, axes: tuple[int, ...], **_: Any) -> Value:
        result = self._reduce("ReduceMax", out, x, axes, x.low, x.high)
        result.greatest_of = x
        return result

    def _reduce(self, operator: str, out: Any, x: Value, axes: tuple[int, ...], low: int, high: int) -> Value:
        leading = len(x.actual) - len(x.shape)  # ones
        if leading < 0 or x.actual[leading:] != x.shape:
            x, leading = self._whole(x), 0
        name = self.graph.node(operator, self.graph.tensor(x), np.array(axes, np.int64) - len(x.shape))
        reduced = self.result(name, out.shape, low, high)
        reduced.actual = tuple(1 if i - leading in axes else size for i, size in enumerate(x.actual))
        return reduced

    def do_reshape(self, out: Any, x: Value, **_: Any) -> Value:
        return self._viewed(x if math.prod(x.actual) in (1, math.prod(x.shape)) else self._whole(x), out.shape)

    do_squeeze = do_expand_dims = do_reshape

    def do_broadcast_in_dim(self, out: Any, x: Value, broadcast_dimensions: tuple[int, ...], **_: Any) -> Value:
        x = x if math.prod(x.actual) in (1, math.prod(x.shape)) else self._whole(x)
        between = [1] * len(out.shape)
        for size, axis in zip(x.shape, broadcast_dimensions, strict=True):
            between[axis] = size
        placed = tuple(between)
        if math.prod(placed) != math.prod(out.shape) and math.prod(x.actual) > 1 and not _aligned(x.actual, placed):
            x = Value({"int32": self.graph.tensor(x, shape=placed)}, placed, placed, x.low, x.high)
        return self._viewed(x, out.shape)

    def _viewed(self, x: Value, shape: tuple[int, ...]) -> Value:
        """The same tensors as another shape in JAX, to which they broadcast or are reshaped where they are used."""
        return Value(x.names, x.actual, shape, x.low, x.high)

    def _whole(self, x: Value) -> Value:
        """With a tensor of exactly the shape in JAX."""
        return Value({"int32": self.graph.tensor(x, shape=x.shape)}, x.shape, x.shape, x.low, x.high)

    def do_gather(
        self, out: Any, operand: Known, index: Value, dimension_numbers: Any, slice_sizes: Any, **_: Any
    ) -> Value:
        """Rows of a constant."""
        d, batch = dimension_numbers, len(index.shape) - 1
        rows = tuple(range(batch, len(out.shape)))
        usual = (d.offset_dims, d.collapsed_slice_dims, d.start_index_map, d.operand_batching_dims) == (
            rows,
            (0,),
            (0,),
            (),
        )
        if not usual or slice_sizes != (1, *operand.shape[1:]):
            raise NotRecorded(f"ONNX: gather by {d}: expected rows of a constant")
        return self._rows(out, operand, self._viewed(index, index.shape[:-1]))

    def do_dynamic_slice(self, out: Any, operand: Known, *starts: Known, slice_sizes: tuple[int, ...]) -> Value:
        """A row of a constant."""
        if slice_sizes != (1, *operand.shape[1:]) or not isinstance(starts[0], Value):
            raise NotRecorded(f"ONNX: dynamic_slice of {slice_sizes}: expected a row of a constant")
        return self._rows(out, operand, starts[0])

    def _rows(self, out: Any, table: Known, index: Value) -> Value:
        if not isinstance(table, np.ndarray) or index.low < 0 or index.high >= len(table):
            raise NotRecorded(f"ONNX: rows {index.low} to {index.high}: expected those of a constant of {table.shape}")
        dtype = "int32" if table.ndim == 1 else table.dtype.name
        at, places = self.graph.tensor(index), self._actual(index)
        name = self.graph.node("Gather", table.astype(dtype), at, axis=0)
        return Value({dtype: name}, (*places, *table.shape[1:]), out.shape, int(table.min()), int(table.max()))

    def do_dot_general(self, out: Any, x: Known, matrix: Known, dimension_numbers: Any, **_: Any) -> Value:
        """int8 [rows, fan-in] by a constant, int8 [fan-out, fan-in]."""
        if (
            not isinstance(matrix, np.ndarray)
            or dimension_numbers != (((1,), (1,)), ((), ()))
            or matrix.dtype != np.int8
        ):
            raise NotRecorded(f"ONNX: dot_general by {dimension_numbers}: expected int8 rows by a constant int8 matrix")
        name = self.graph.node("MatMulInteger", self.graph.tensor(x, "int8", x.shape), np.ascontiguousarray(matrix.T))
        most = max(map(abs, _bounds(x))) * int(np.abs(matrix.astype(np.int64)).sum(axis=1).max())
        product = self.result(name, out.shape, -most, most)
        product.actual = out.shape
        return product

    def do_slice(self, out: Any, x: Value, start_indices: Any, limit_indices: Any, strides: Any) -> Value:
        ends = [np.array(ends, np.int64) for ends in (start_indices, limit_indices, range(len(x.shape)))]
        if strides is not None:
            raise NotRecorded(f"ONNX: slice with strides {strides}: expected none")
        name = self.graph.node("Slice", self.graph.tensor(x, shape=x.shape), *ends)
        return Value({"int32": name}, out.shape, out.shape, x.low, x.high)

    def do_concatenate(self, out: Any, *parts: Known, dimension: int) -> Value:
        low, high = (pick(ends) for pick, ends in zip((min, max), zip(*map(_bounds, parts), strict=True), strict=True))
        name = self.graph.node("Concat", *(self.graph.tensor(x, shape=x.shape) for x in parts), axis=dimension)
        return Value({"int32": name}, out.shape, out.shape, low, high)

    def scan(self, equation: Any, inputs: list[Known]) -> list[Known]:
        """A loop, unrolled: its inputs are split into steps, its results stacked."""
        consts, carried, length = (equation.params[name] for name in ("num_consts", "num_carry", "length"))
        fixed, carry, through = inputs[:consts], inputs[consts : consts + carried], inputs[consts + carried :]
        made: list[list[Known]] = []
        for i in range(length):
            entries = [np.asarray(x[i]) if isinstance(x, np.ndarray) else self._entry(x, i) for x in through]
            results = self.run(equation.params["jaxpr"], [*fixed, *carry, *entries])
            carry, made = results[:carried], [*made, results[carried:]]
        if equation.params["reverse"]:
            raise NotRecorded("ONNX: a scan in reverse: expected a loop over layers")
        outs = equation.outvars[carried:]
        return [
            *carry,
            *(self._stacked(out.aval, list(parts)) for out, parts in zip(outs, zip(*made, strict=True), strict=True)),
        ]

    def _entry(self, x: Value, i: int) -> Value:
        name = self.graph.node("Gather", self.graph.tensor(x, shape=x.shape), np.array([i], np.int64), axis=0)
        return Value({"int32": name}, (1, *x.shape[1:]), x.shape[1:], x.low, x.high)

    def _stacked(self, out: Any, parts: list[Known]) -> Value:
        dtype, shape = out.dtype.name, (1, *out.shape[1:])
        name = self.graph.node("Concat", *(self.graph.tensor(x, dtype, shape) for x in parts), axis=0)
        ends = list(map(_bounds, parts))
        return Value({dtype: name}, out.shape, out.shape, min(low for low, _ in ends), max(high for _, high in ends))
