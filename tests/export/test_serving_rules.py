import re

import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry

from keras_bert_lib.export import op_contract, serving_rules


def written(function, folder, dtype=tf.float32):
    """SavedModel of a function of one vector."""
    module = tf.Module()
    traced = tf.function(function, input_signature=[tf.TensorSpec([None], dtype, name="x")], autograph=False)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": traced.get_concrete_function()})
    return folder


def problems(folder):
    return op_contract(folder).problems


def pinned(x):
    with tf.device("GPU:0"):
        return {"y": x + 1.0}


def pinned_to_the_second_cpu(x):
    with tf.device("CPU:1"):
        return {"y": x + 1.0}


def on_the_cpu(x):
    with tf.device("CPU:0"):
        return {"y": x + 1.0}


@tf.function(jit_compile=True)
def compiled(x):
    return x + 1.0


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (pinned, "op 'AddV2' (add) is pinned to '/device:GPU:0'"),
        (pinned_to_the_second_cpu, "op 'AddV2' (add) is pinned to '/device:CPU:1'"),
        (lambda x: {"y": compiled(x)}, "must be compiled by XLA"),
        (lambda x: {"y": tf.py_function(lambda v: v, [x], tf.float32)}, "op 'EagerPyFunc' calls back into Python"),
        (lambda x: {"y": tf.numpy_function(lambda v: v, [x], tf.float32)}, "op 'PyFunc' calls back into Python"),
    ],
)
def test_what_a_server_cannot_run_is_named(tmp_path, function, reason):
    assert any(reason in found for found in problems(written(function, tmp_path / "1")))


def test_control_flow_tables_and_cpu_are_servable(tmp_path):
    def function(x):
        return {
            "y": tf.while_loop(lambda v: tf.reduce_sum(v) < 3.0, lambda v: (v + 1.0,), (x,))[0] + on_the_cpu(x)["y"]
        }

    assert problems(written(function, tmp_path / "1")) == []


def test_text_ops_of_the_server_are_servable(tmp_path):
    import tensorflow_text

    tokenizer = tensorflow_text.FastBertTokenizer(["[UNK]", "a", "film"], token_out_type=tf.int32)
    trimmer = tensorflow_text.RoundRobinTrimmer(3)
    found = op_contract(
        written(lambda x: {"y": trimmer.trim([tokenizer.tokenize(x)])[0].to_tensor()}, tmp_path / "1", tf.string)
    )
    assert found.problems == [] and found.signatures == {"serving_default": "2.20"}
    assert found.ops["TFText>RoundRobinTrim"] == found.ops["FastWordpieceTokenizeWithOffsets"] == "2.20"


def changed(folder, change):
    """The SavedModel, as a stranger could have written it."""
    file = folder / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    change(model.meta_graphs[0])
    file.write_bytes(model.SerializeToString())
    return folder


def double(x):
    return {"y": x + x}


def renamed(op):
    def change(meta_graph):
        for function in meta_graph.graph_def.library.function:
            for node in function.node_def:
                node.op = op if node.op == "AddV2" else node.op

    return change


def test_op_that_no_server_links_is_named(tmp_path):
    contract = op_contract(changed(written(double, tmp_path / "1"), renamed("Own>Add")))
    assert contract.problems == [
        "op 'Own>Add' is not linked into the server; use core TensorFlow ops in its place",
    ]
    assert contract.ops["Own>Add"] is None and contract.signatures == {"serving_default": None}


def test_op_of_a_newer_tensorflow_needs_its_server_in_the_signature_that_reaches_it(tmp_path):
    module = tf.Module()
    module.double = tf.function(double, [tf.TensorSpec([None], name="x")]).get_concrete_function()
    module.halve = tf.function(lambda x: {"y": x / 2.0}, [tf.TensorSpec([None], name="x")]).get_concrete_function()
    tf.saved_model.save(module, tmp_path / "1", signatures={"serving_default": module.double, "halve": module.halve})
    contract = op_contract(changed(tmp_path / "1", renamed("DecodeJxl")))
    assert contract.signatures == {"halve": "2.20", "serving_default": "2.21"}
    assert contract.ops["DecodeJxl"] == "2.21" and contract.problems == []


def read(x):
    return {"y": tf.map_fn(tf.io.read_file, x)}


def list_files(x):
    return {"y": tf.io.matching_files(x)}


def write(x):
    with tf.control_dependencies([tf.print(x, output_stream="file:///anywhere")]):
        return {"y": tf.identity(x)}


def read_whole(x):
    reader = tf.raw_ops.WholeFileReaderV2()
    queue = tf.raw_ops.FIFOQueueV2(component_types=[tf.string])
    return {"y": tf.raw_ops.ReaderReadV2(reader_handle=reader, queue_handle=queue).value[None]}


@pytest.mark.parametrize(
    ("function", "ops"),
    [
        (read, ["ReadFile"]),
        (list_files, ["MatchingFiles"]),
        (write, ["PrintV2"]),
        (read_whole, ["ReaderReadV2", "WholeFileReaderV2"]),
    ],
)
def test_op_that_reaches_outside_is_named(tmp_path, function, ops):
    found = [f"op {op!r} reaches outside of the model: files, or other machines" for op in ops]
    assert problems(written(function, tmp_path / "1", tf.string)) == found


def test_every_op_of_tensorflow_that_takes_a_path_is_known_to_reach_outside():
    path = re.compile("file|(^|_)path$|dir(ectory)?$|descriptor_source|memory_region|address|logdir")
    found = set()
    for op in dir(tf.raw_ops):
        definition = op_def_registry.get(op) if op[0].isupper() else None
        if definition and any(path.search(each.name) for each in (*definition.input_arg, *definition.attr)):
            found.add(op)
    assert {"ReadFile", "ImmutableConst", "DecodeProtoV2", "TFRecordDataset"} <= found and len(found) > 30
    assert [op for op in found if not serving_rules._OUTSIDE.search(op)] == []


def read_as_constant(x):
    return {
        "y": tf.fill(tf.shape(x), tf.raw_ops.ImmutableConst(dtype=tf.uint8, shape=[], memory_region_name="/a/file"))
    }


def end(x):
    with tf.control_dependencies([tf.raw_ops.Abort(error_msg="", exit_without_error=True)]):
        return {"y": tf.identity(x)}


@pytest.mark.parametrize(("function", "op"), [(read_as_constant, "ImmutableConst"), (end, "Abort")])
def test_op_whose_name_does_not_tell_is_named(tmp_path, function, op):
    found = problems(written(function, tmp_path / "1"))
    assert found == [f"op {op!r} reaches outside of the model: files, or other machines"]


def test_a_signature_that_reads_by_the_functions_of_the_saver_is_named(tmp_path):
    """Of these alone the ops are a model's own: who asks for one may read what he likes."""

    def by_the_saver(meta_graph):
        graph = meta_graph.graph_def
        call = next(n for n in graph.node if n.name == meta_graph.saver_def.restore_op_name.split(":")[0])
        meta_graph.signature_def["restore"].CopyFrom(meta_graph.signature_def["serving_default"])
        meta_graph.signature_def["restore"].outputs["y"].name = f"{call.name}:0"

    module = tf.Module()
    module.weight = tf.Variable([1.0])
    traced = tf.function(lambda x: {"y": x * module.weight}, input_signature=[tf.TensorSpec([None], name="x")])
    tf.saved_model.save(module, tmp_path / "1", signatures={"serving_default": traced.get_concrete_function()})
    assert problems(tmp_path / "1") == []
    found = problems(changed(tmp_path / "1", by_the_saver))
    assert "op 'RestoreV2' reaches outside of the model: files, or other machines" in found


def test_the_graph_that_is_read_is_the_one_that_is_loaded(tmp_path):
    """That of the tag "serve" alone, even behind one of more tags."""
    written(read, tmp_path / "1", tf.string)
    harmless = saved_model_pb2.SavedModel.FromString((written(double, tmp_path / "2") / "saved_model.pb").read_bytes())
    harmless.meta_graphs[0].meta_info_def.tags.append("tpu")
    file = tmp_path / "1" / "saved_model.pb"
    both = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    both.meta_graphs.insert(0, harmless.meta_graphs[0])
    file.write_bytes(both.SerializeToString())
    assert problems(tmp_path / "1") == ["op 'ReadFile' reaches outside of the model: files, or other machines"]
    with pytest.raises(ValueError, match='has no graph with the one tag "serve"'):
        (tmp_path / "2" / "saved_model.pb").write_bytes(harmless.SerializeToString())
        op_contract(tmp_path / "2")


def test_op_that_runs_while_a_model_is_loaded_counts_too(tmp_path):
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        x = tf.compat.v1.placeholder(tf.float32, [None])
        builder = tf.compat.v1.saved_model.Builder(str(tmp_path / "1"))
        signature = tf.compat.v1.saved_model.predict_signature_def({"x": x}, {"y": x + 1.0})
        builder.add_meta_graph_and_variables(
            session, ["serve"], {"serving_default": signature}, main_op=tf.io.write_file(str(tmp_path / "new"), "here")
        )
        builder.save()
    assert problems(tmp_path / "1") == ["op 'WriteFile' reaches outside of the model: files, or other machines"]


class FileName(tf.lookup.TextFileInitializer):
    """Lines of a file that is no asset: its name is a constant of the graph."""

    def __init__(self, name):
        super().__init__(name, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER, tf.string, 1, delimiter=":")
        self._filename = tf.constant(name)

    def initialize(self, table):
        handle = table.resource_handle
        return tf.raw_ops.InitializeTableFromTextFileV2(
            table_handle=handle, filename=self._filename, key_index=-1, value_index=-2, vocab_size=-1, delimiter=":"
        )


@pytest.mark.parametrize("inside", [False, True], ids=["while loading", "in the signature"])
def test_vocabulary_that_is_no_asset_is_named(tmp_path, inside):
    module = tf.Module()
    (tmp_path / "secret").write_text("a\nb\n")
    name = str(tmp_path / "secret")
    module.table = tf.lookup.StaticHashTable(FileName(name), "")

    def lines(x):
        if inside:
            tf.raw_ops.InitializeTableFromTextFileV2(
                table_handle=module.table.resource_handle, filename=name, key_index=-1, value_index=-2
            )
        return {"y": module.table.lookup(x)}

    function = tf.function(lines, [tf.TensorSpec([None], tf.int64, name="x")], autograph=False)
    tf.saved_model.save(module, tmp_path / "1", signatures={"serving_default": function.get_concrete_function()})
    found = "op 'InitializeTableFromTextFileV2' reaches outside of the model: files, or other machines"
    assert problems(tmp_path / "1") == [found]


def test_reading_of_variables_and_vocabularies_on_loading_is_no_problem(tmp_path):
    (tmp_path / "vocab.txt").write_text("a\nfilm\n")
    module = tf.Module()
    module.variable = tf.Variable([1.0])
    initializer = tf.lookup.TextFileInitializer(
        str(tmp_path / "vocab.txt"),
        tf.string,
        tf.lookup.TextFileIndex.WHOLE_LINE,
        tf.int64,
        tf.lookup.TextFileIndex.LINE_NUMBER,
    )
    module.table = tf.lookup.StaticHashTable(initializer, -1)
    function = tf.function(
        lambda x: {"y": tf.cast(module.table.lookup(x), tf.float32) * module.variable},
        [tf.TensorSpec([None], tf.string, name="x")],
    )
    tf.saved_model.save(module, tmp_path / "1", signatures={"serving_default": function.get_concrete_function()})
    contract = op_contract(tmp_path / "1")
    assert contract.problems == [] and {"RestoreV2", "InitializeTableFromTextFileV2"} <= contract.ops.keys()


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b", "..\\b", ""])
def test_asset_outside_of_the_folder_is_named(tmp_path, name):
    folder = changed(written(double, tmp_path / "1"), lambda meta_graph: meta_graph.asset_file_def.add(filename=name))
    assert op_contract(folder).problems == [f"asset {name!r} lies outside of the model's folder"]


def test_what_is_no_saved_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no saved_model\.pb\. Pass the folder of one version"):
        op_contract(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"\xff\xff not a graph")
    with pytest.raises(ValueError, match=r"saved_model\.pb' is damaged: .*Export or copy it again"):
        op_contract(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ValueError, match='has no graph with the one tag "serve"'):
        op_contract(tmp_path)
