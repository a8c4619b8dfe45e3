"""TensorFlow's file formats as protobuf messages, so far as the audit reads them, without TensorFlow.

Importing TensorFlow takes seconds and half a gigabyte, and its op registry refuses graphs with custom ops. The audit
needs neither: the messages below are declared in a descriptor pool of their own, with the numbers, names and types of
TensorFlow's ``.proto`` files (``tensorflow/core/framework`` and ``…/protobuf``). Fields that are not listed are skipped.
"""

import re

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = [
    "BundleEntryProto",
    "BundleHeaderProto",
    "CheckpointState",
    "FunctionDef",
    "GraphDef",
    "MetaGraphDef",
    "NodeDef",
    "SavedModel",
    "SavedTensorSlices",
    "TensorProto",
    "UnparsedMetaGraphDef",
    "UnparsedNodeDef",
    "UnparsedSavedModel",
    "VariableDef",
]

# A message's fields, each with number, name and type; * is a repeated field, {} a map from string to the type named in it.
# Of "one of" them a message has one only: a third less memory for a graph, whose attributes they are.
_SCHEMA = """
Dim: 1 size int64
TensorShapeProto: 2 dim Dim*; 3 unknown_rank bool
TensorProto: 1 dtype DataType; 2 tensor_shape TensorShapeProto; 4 tensor_content bytes; 5 float_val float*;
  6 double_val double*; 7 int_val int32*; 8 string_val bytes*; 10 int64_val int64*; 11 bool_val bool*; 13 half_val int32*
ListValue: 2 s bytes*; 3 i int64*; 4 f float*; 5 b bool*; 6 type DataType*; 7 shape TensorShapeProto*; 9 func NameAttrList*
AttrValue one of: 1 list ListValue; 2 s bytes; 3 i int64; 4 f float; 5 b bool; 6 type DataType; 7 shape TensorShapeProto;
  8 tensor TensorProto; 10 func NameAttrList
NameAttrList: 1 name string; 2 attr {AttrValue}
NodeDef: 1 name string; 2 op string; 3 input string*; 5 attr {AttrValue}
ArgDef: 1 name string
OpDef: 1 name string; 2 input_arg ArgDef*; 3 output_arg ArgDef*
FunctionDef: 1 signature OpDef; 3 node_def NodeDef*; 4 ret {string}; 6 control_ret {string}
FunctionDefLibrary: 1 function FunctionDef*
GraphDef: 1 node NodeDef*; 2 library FunctionDefLibrary
MetaInfoDef: 4 tags string*; 5 tensorflow_version string
SaverDef: 1 filename_tensor_name string; 2 save_tensor_name string; 3 restore_op_name string
NodeList: 1 value string*
BytesList: 1 value bytes*
CollectionDef: 1 node_list NodeList; 2 bytes_list BytesList
TensorInfo: 1 name string; 2 dtype DataType
SignatureDef: 1 inputs {TensorInfo}; 2 outputs {TensorInfo}; 3 method_name string
MetaGraphDef: 1 meta_info_def MetaInfoDef; 2 graph_def GraphDef; 3 saver_def SaverDef; 4 collection_def {CollectionDef};
  5 signature_def {SignatureDef}
SavedModel: 1 saved_model_schema_version int64; 2 meta_graphs MetaGraphDef*
VariableDef: 1 variable_name string; 2 initializer_name string; 3 snapshot_name string; 5 is_resource bool;
  6 initial_value_name string; 7 trainable bool
Extent: 1 start int64; 2 length int64
TensorSliceProto: 1 extent Extent*
BundleHeaderProto: 1 num_shards int32; 2 endianness int32
BundleEntryProto: 1 dtype DataType; 2 shape TensorShapeProto; 3 shard_id int32; 4 offset int64; 5 size int64;
  6 crc32c fixed32; 7 slices TensorSliceProto*
SavedSliceMeta: 1 name string; 2 shape TensorShapeProto; 3 type DataType; 4 slice TensorSliceProto*
SavedTensorSliceMeta: 1 tensor SavedSliceMeta*
SavedSlice: 1 name string; 2 slice TensorSliceProto; 3 data TensorProto
SavedTensorSlices: 1 meta SavedTensorSliceMeta; 2 data SavedSlice
CheckpointState: 1 model_checkpoint_path string; 2 all_model_checkpoint_paths string*
"""

_UNPARSED = ("NodeDef", "GraphDef", "MetaGraphDef", "SavedModel")
"""Messages that there are twice: also as ``Unparsed…``, whose nodes' attributes are not listed until a node is asked for.

Few nodes' attributes are looked at, and parsed they are most of what a large graph takes. As unknown fields they are kept
as the bytes they were, and come with `SerializeToString`.
"""

_DTYPES = (
    "INVALID FLOAT DOUBLE INT32 UINT8 INT16 INT8 STRING COMPLEX64 INT64 BOOL QINT8 QUINT8 QINT32 "
    "BFLOAT16 QINT16 QUINT16 UINT16 COMPLEX128 HALF RESOURCE VARIANT UINT32 UINT64 FLOAT8_E5M2 "
    "FLOAT8_E4M3FN FLOAT8_E4M3FNUZ FLOAT8_E4M3B11FNUZ FLOAT8_E5M2FNUZ INT4 UINT4 INT2 UINT2 FLOAT4_E2M1FN"
)
"""Names of tensors' types, each at its number."""

_PACKAGE = "bn_graph.audit"
_Field = descriptor_pb2.FieldDescriptorProto


def _declare() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="bn_graph_audit.proto", package=_PACKAGE, syntax="proto3")
    dtypes = file.enum_type.add(name="DataType")
    for number, name in enumerate(_DTYPES.split()):
        dtypes.value.add(name=f"DT_{name}", number=number)
        if number:
            dtypes.value.add(name=f"DT_{name}_REF", number=number + 100)
    declarations = [re.split(r": ", text, maxsplit=1) for text in re.split(r"\n(?=\w)", _SCHEMA.strip())]
    for name, fields in declarations + [_unparsed(*each) for each in declarations if each[0] in _UNPARSED]:
        message = file.message_type.add(name=name.removesuffix(" one of"))
        for field in fields.split(";"):
            _add_field(message, *field.split())
        if name != message.name:
            message.oneof_decl.add(name="value")
            for field in message.field:
                field.oneof_index = 0
    return file


def _unparsed(name: str, fields: str) -> list[str]:
    names = "|".join(_UNPARSED)
    return [f"Unparsed{name}", re.sub(rf"\b({names})\b", r"Unparsed\1", fields.replace("; 5 attr {AttrValue}", ""))]


def _add_field(message: descriptor_pb2.DescriptorProto, number: str, name: str, kind: str) -> None:
    field = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if kind.endswith("*") or kind.startswith("{"):
        field.label = _Field.LABEL_REPEATED
    if kind.startswith("{"):
        entry = message.nested_type.add(name="".join(part.title() for part in name.split("_")) + "Entry")
        entry.options.map_entry = True
        _add_field(entry, "1", "key", "string")
        _add_field(entry, "2", "value", kind.strip("{}"))
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{_PACKAGE}.{message.name}.{entry.name}"
        return
    kind = kind.rstrip("*")
    if kind.islower():
        field.type = getattr(_Field, f"TYPE_{kind.upper()}")
    else:
        field.type = _Field.TYPE_ENUM if kind == "DataType" else _Field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{kind}"


_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(_declare())


# protobuf before 4.22, which TensorFlow 2.12 to 2.17 admit, has it as a factory's method only.
_get_class = getattr(message_factory, "GetMessageClass", None) or message_factory.MessageFactory(_POOL).GetPrototype


def _message(name: str) -> type:
    return _get_class(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


BundleEntryProto = _message("BundleEntryProto")
BundleHeaderProto = _message("BundleHeaderProto")
CheckpointState = _message("CheckpointState")
FunctionDef = _message("FunctionDef")
GraphDef = _message("GraphDef")
MetaGraphDef = _message("MetaGraphDef")
NodeDef = _message("NodeDef")
SavedModel = _message("SavedModel")
SavedTensorSlices = _message("SavedTensorSlices")
TensorProto = _message("TensorProto")
UnparsedMetaGraphDef = _message("UnparsedMetaGraphDef")
UnparsedNodeDef = _message("UnparsedNodeDef")
UnparsedSavedModel = _message("UnparsedSavedModel")
VariableDef = _message("VariableDef")
