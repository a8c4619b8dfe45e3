"""The op types of TensorFlow that graphs are read by: every set of names that this project looks for, once."""

__all__ = [
    "ABSENT",
    "ADDITIONS",
    "ARITHMETIC",
    "ASSIGNING",
    "ASSIGNS",
    "AVERAGED",
    "BETWEEN_UPDATES",
    "CLIPS",
    "CONDS",
    "COUNTING",
    "DIVISIONS",
    "EFFECTS",
    "ENGINES",
    "ENTERS",
    "EXITS",
    "FEWEST_INPUTS",
    "FORWARDS",
    "FUNCTIONS",
    "FUSED",
    "GLOBAL",
    "GROUPING",
    "LOOPS",
    "LOOP_ENDS",
    "MANY_INPUTS",
    "MERGES",
    "NEXT_ITERATIONS",
    "NOT_READING",
    "NO_OUTPUTS",
    "OPTIMIZERS",
    "OPTIMIZER_ACCUMULATORS",
    "PARTS",
    "PORTS",
    "RANDOM",
    "RANKS",
    "REDUCTIONS",
    "REFERENCE_FORWARDS",
    "REF_ASSIGNS",
    "REPLICA_GATHERS",
    "REPLICA_SUMS",
    "RESHAPES",
    "RESOURCE_ASSIGNS",
    "ROW_ASSIGNS",
    "ROW_READS",
    "SAME_RANK",
    "SAME_VALUES",
    "SCALINGS",
    "SCATTERS_OF_VALUES",
    "SELECTS",
    "SIZES",
    "STATEFUL_CALLS",
    "SWITCHES",
    "VALUE_FORWARDS",
    "VARIABLES",
    "WEIGHTED",
]

ABSENT = ""
"""The type of a node that an input names and that the graph does not have."""

# --- Variables and what assigns them ----------------------------------------------------------------------------------

VARIABLES = frozenset({"VarHandleOp", "VariableV2", "Variable", "AutoReloadVariable"})
"""Hold a variable: the handle of a resource variable, the reference of a ref variable."""

REF_ASSIGNS = frozenset({"Assign", "AssignAdd", "AssignSub"})
"""Assign to a ref variable: the reference, the value; they return the reference."""

RESOURCE_ASSIGNS = frozenset({"AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp"})
"""Assign to a resource variable: the handle, the value; they return nothing."""

ASSIGNS = REF_ASSIGNS | RESOURCE_ASSIGNS
"""Assign to a whole variable."""

ROW_ASSIGNS = frozenset({"ResourceScatterSub", "ResourceScatterAdd", "ResourceScatterUpdate"})
"""Assign to rows of a variable: the handle, the rows' numbers, the values."""

ROW_READS = frozenset({"ResourceGather"})
"""Read rows of a resource variable: the handle, the rows' numbers."""

OPTIMIZERS = ("Apply", "ResourceApply", "SparseApply", "ResourceSparseApply")
"""Beginnings of the types of optimizers' kernels."""

ASSIGNING = ("Assign", "Scatter", "ResourceScatter", "StridedSliceAssign", "ResourceStridedSliceAssign", "CountUpTo")
"""Beginnings of the types that assign their input 0, but for `SCATTERS_OF_VALUES`."""

SCATTERS_OF_VALUES = frozenset({"ScatterNd", "ScatterNdNonAliasingAdd"})
"""Begin like those, and assign nothing."""

NOT_READING = frozenset({"Assign", "AssignVariableOp", "VarIsInitializedOp", "IsVariableInitialized"})
"""Take a variable as input 0 and don't read its value."""

OPTIMIZER_ACCUMULATORS = frozenset(
    {"AccumulatorApplyGradient", "ResourceAccumulatorApplyGradient", "SparseAccumulatorApplyGradient"}
)
"""Collect the gradients of several workers."""

EFFECTS = ("Assign", *OPTIMIZERS, "ScatterAdd", "ResourceScatter")
"""Beginnings of types that run whenever the function they are in is called."""

# --- Choices, loops and calls -----------------------------------------------------------------------------------------

SWITCHES = frozenset({"Switch", "RefSwitch"})
"""Control flow v1: the value and the predicate in; the value on port 1 where it is True, on port 0 where not."""

MERGES = frozenset({"Merge", "RefMerge"})
"""Control flow v1: pass on whichever input is there."""

ENTERS = frozenset({"Enter", "RefEnter"})
"""Control flow v1: into a loop."""

EXITS = frozenset({"Exit", "RefExit"})
"""Control flow v1: out of a loop."""

NEXT_ITERATIONS = frozenset({"NextIteration", "RefNextIteration"})
"""Control flow v1: into the loop's next turn."""

LOOP_ENDS = ENTERS | EXITS | NEXT_ITERATIONS | frozenset({"LoopCond"})
"""Control flow v1: where a loop's values come to an end if nothing uses what it computed."""

SELECTS = frozenset({"Select", "SelectV2"})
"""``where``: both sides run, the predicate (input 0) chooses."""

CONDS = frozenset({"If", "StatelessIf"})
"""Control flow v2: call one of two functions."""

LOOPS = frozenset({"While", "StatelessWhile"})
"""Control flow v2: call a function again and again."""

STATEFUL_CALLS = frozenset({"StatefulPartitionedCall", "If", "While"})
"""Call functions that may assign; they run whenever the function they are in is called."""

FUNCTIONS = {
    "If": (1, {"then_branch": "then", "else_branch": "else"}),
    "StatelessIf": (1, {"then_branch": "then", "else_branch": "else"}),
    "While": (0, {"body": "body", "cond": "condition"}),
    "StatelessWhile": (0, {"body": "body", "cond": "condition"}),
    "PartitionedCall": (0, {"f": "call"}),
    "StatefulPartitionedCall": (0, {"f": "call"}),
    "TPUPartitionedCall": (0, {"f": "call"}),
    "RemoteCall": (1, {"f": "call"}),
    "XlaLaunch": (0, {"function": "call"}),
}
"""Calling ops: which input is their functions' argument 0, and the part that each function attribute plays."""

ENGINES = frozenset({"TRTEngineOp"})
"""Hold a part of a graph compiled for a device; in most files the part itself is beside it, as function or GraphDef."""

PORTS = {"output_false": 0, "output_true": 1, "value_index": 1, "batch_mean": 1, "batch_variance": 2}
"""Ports that function bodies name, other than the first; a number after the name counts within a list."""

# --- Values passed on -------------------------------------------------------------------------------------------------

SAME_VALUES = frozenset({"Identity", "Switch", "RefSwitch", "StopGradient"})
"""Input 0 comes out unchanged, in shape and dtype too."""

VALUE_FORWARDS = frozenset({"Identity", "IdentityN", "Switch", "Enter", "Exit", "Merge", "NextIteration"})
"""Forward a resource's handle, and of a ref variable only the value: what comes out can't be assigned."""

REFERENCE_FORWARDS = VALUE_FORWARDS | {
    "RefIdentity",
    "RefSwitch",
    "RefEnter",
    "RefExit",
    "RefMerge",
    "RefNextIteration",
}
"""Forward what may be assigned: a handle, or a reference."""

MANY_INPUTS = MERGES | {"IdentityN"}
"""Forward each of their inputs."""

BETWEEN_UPDATES = REFERENCE_FORWARDS | {"NoOp", "Const", "ReadVariableOp"}
"""Stand between an update op and its assigns: groups, branches, and the values read after them."""

RESHAPES = frozenset({"Squeeze", "Reshape", "ExpandDims", "BroadcastTo", "Transpose"})
"""Input 0 comes out in another shape."""

REPLICA_SUMS = frozenset(
    {"CrossReplicaSum", "HorovodAllreduce", "NcclAllReduce", "CollectiveReduce", "CollectiveReduceV2"}
)
"""Sum a tensor over the copies of a program on other devices: what statistics of all copies are computed with."""

REPLICA_GATHERS = frozenset({"CollectiveGather", "CollectiveGatherV2"})
"""Put the vectors of all copies of a program together, as rows."""

FORWARDS = (
    frozenset({"Identity", "RefIdentity", "StopGradient", "Cast", "Snapshot", "PreventGradient", "CheckNumerics"})
    | frozenset({"ReadVariableOp", "ResourceGather"})
    | ENTERS
    | EXITS
    | NEXT_ITERATIONS
    | RESHAPES
    | REPLICA_SUMS
)
"""One value in, as input 0, the same out, give or take dtype and dimensions of size 1."""

# --- Arithmetic -------------------------------------------------------------------------------------------------------

PARTS = frozenset({"StridedSlice", "Slice", "Gather", "GatherV2", "Unpack", "Split", "SplitV"})
"""Parts of a tensor."""

ADDITIONS = frozenset({"Add", "AddV2", "BiasAdd"})
"""A sum of two, or of values and a vector of channels."""

DIVISIONS = frozenset({"RealDiv", "Div", "DivNoNan"})
"""A quotient of two floating-point tensors."""

SCALINGS = frozenset({"Mul"}) | DIVISIONS
"""A product or quotient of two."""

CLIPS = frozenset({"Maximum", "Relu", "Abs"})
"""Keep a variance from being negative."""

ARITHMETIC = frozenset({"Sub", "Neg"}) | ADDITIONS | SCALINGS
"""What normalization itself is written with."""

REDUCTIONS = frozenset({"Mean", "Sum"})
"""Reduce the axes in input 1."""

AVERAGED = (
    frozenset({"AddN", "Maximum", "Relu", "Sqrt", "Rsqrt", "Square", "IdentityN", "ConcatV2", "Pack"})
    | (ARITHMETIC - {"BiasAdd"})
    | MERGES
    | SWITCHES
    | SELECTS
    | FORWARDS
    | ASSIGNS
)
"""What may lie between a batch statistic and the assign to its moving average."""

SIZES = frozenset({"Shape", "ShapeN", "Size", "Rank", "Const"})
"""Constant, or known from shapes alone."""

COUNTING = (
    frozenset({"Mul", "RealDiv", "Div", "Sub", "Add", "AddV2", "Prod", "Maximum", "FloorDiv", "DivNoNan", "Reciprocal"})
    | frozenset({"GatherV2", "Gather", "StridedSlice", "Pack", "Inv", "Slice"})
    | FORWARDS
)
"""What a number of values, such as Bessel's m/(m − 1), is computed with from `SIZES`."""

# --- Layers -----------------------------------------------------------------------------------------------------------

FUSED = {"FusedBatchNorm": "fused", "FusedBatchNormV2": "fused V2", "FusedBatchNormV3": "fused V3"}
"""The fused kernels of batch norm, and what a report calls them."""

GLOBAL = frozenset({"BatchNormWithGlobalNormalization"})
"""The kernel of batch norm of TensorFlow's first year, always by the statistics that it is given."""

WEIGHTED = ("MatMul", "BatchMatMul", "Conv", "DepthwiseConv", "BiasAdd")
"""Beginnings of the types that layers with weights are made of."""

RANKS = {"MatMul": 2, "Conv2D": 4, "Conv2DBackpropInput": 4, "DepthwiseConv2dNative": 4, "MaxPool": 4, "AvgPool": 4}
RANKS |= {"Conv3D": 5, "Conv3DBackpropInputV2": 5}
"""How many dimensions a type's output has."""

SAME_RANK = frozenset(
    {"BiasAdd", "Relu", "Relu6", "Elu", "Tanh", "Sigmoid", "LeakyRelu", "Maximum", "Add", "AddV2", "Mul"}
    | {"Identity", "Cast", "Switch"}
)
"""The output has as many dimensions as input 0."""

RANDOM = ("Random", "Multinomial", "StatelessRandom", "TruncatedNormal", "ParameterizedTruncatedNormal")
"""Beginnings of the types of random ops."""

GROUPING = frozenset({"NoOp", "Identity", "ReadVariableOp"})
"""Gather update ops: a group of them, a group of groups, a read after an assign."""

NO_OUTPUTS = ("Assign", "Save", "Restore", "NoOp", "Assert", "Print", "Shape", "Rank", "Size", "VarIsInitialized")
"""Beginnings of types that no program fetches as a prediction."""

# --- Damaged graphs ---------------------------------------------------------------------------------------------------

FEWEST_INPUTS = (
    dict.fromkeys(FORWARDS | CLIPS | CONDS | {"Rsqrt", "Sqrt", "Square", "Reciprocal", "Inv", "LogicalNot"}, 1)
    | dict.fromkeys(ARITHMETIC | ASSIGNS | REDUCTIONS | SWITCHES | {"SquaredDifference", "Maximum", "Pow"}, 2)
    | dict.fromkeys(SELECTS | ROW_ASSIGNS, 3)
    | dict.fromkeys([*FUSED, *GLOBAL], 5)
    | {"Neg": 1}
)
"""How many inputs a type has at the least; what a damaged file lacks of them, `graph.build` makes `ABSENT` nodes for."""
