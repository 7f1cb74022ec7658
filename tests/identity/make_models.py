"""Two ONNX models of a few numbers each, with the inputs and outputs of YuNet (2022mar) and SFace: what tests/identity checks OpenCV's
face classes with. Needs the onnx package.   python make_models.py data

The detector takes every cell of 16 x 16 pixels that is bright for a face in a frame of 32 x 32 around it; the recogniser gives four
sums over each quarter of the aligned face.
"""
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ANCHORS, STEPS, BRIGHT = [3, 2, 2, 3], [8, 16, 32, 64], 1
# Right eye, left eye, nose, corners of the mouth where SFace wants them in its 112 x 112 pixels.
MARKS = np.array([38.2946, 51.6963, 73.5318, 51.5014, 56.0252, 71.7366, 41.5493, 92.3655, 70.7299, 92.2041])


def save(nodes, constants, inputs, outputs, path):
    """inputs, outputs: (name, shape)."""
    graph = helper.make_graph(nodes, "tiny", [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
                              [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
                              [numpy_helper.from_array(value, name) for name, value in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def detector(path):
    nodes = [helper.make_node("AveragePool", ["input"], [f"mean{step}"], kernel_shape=[step, step], strides=[step, step]) for step in STEPS]
    constants, priors = {}, sum(anchors * (128 // step) ** 2 for anchors, step in zip(ANCHORS, STEPS))
    for output, width in (("loc", 14), ("conf", 2), ("iou", 1)):
        parts = []
        for level, (anchors, step) in enumerate(zip(ANCHORS, STEPS)):
            weights, bias = np.zeros((anchors, width, 3, 1, 1), np.float32), np.zeros((anchors, width), np.float32)
            if output == "loc":
                bias[:, 4:] = (MARKS - 56) / 112 * 10  # in tenths of the frame's side
            elif output == "conf":
                bias[:, 1] = -50
                if level == BRIGHT:
                    weights[0, 1] = 0.2 / 3
                    bias[0, 1] = -0.2 * 200  # 1/2 at a mean of 200
            else:
                bias[:] = 50
            name = f"{output}{level}"
            constants[name + ".weight"], constants[name + ".bias"] = weights.reshape(-1, 3, 1, 1), bias.reshape(-1)
            constants[name + ".shape"] = np.array([-1, width], np.int64)
            nodes += [helper.make_node("Conv", [f"mean{step}", name + ".weight", name + ".bias"], [name + ".maps"], kernel_shape=[1, 1]),
                      helper.make_node("Transpose", [name + ".maps"], [name + ".last"], perm=[0, 2, 3, 1]),
                      helper.make_node("Reshape", [name + ".last", name + ".shape"], [name + ".rows"])]
            parts.append(name + ".rows")
        joined = output if output == "loc" else output + ".joined"
        nodes.append(helper.make_node("Concat", parts, [joined], axis=0))
        if output != "loc":
            nodes.append(helper.make_node("Sigmoid", [joined], [output]))
    save(nodes, constants, [("input", [1, 3, 128, 128])], [("loc", [priors, 14]), ("conf", [priors, 2]), ("iou", [priors, 1])], path)


def recogniser(path):
    rng = np.random.default_rng(3)
    colours = rng.normal(0, 1, (4, 3, 1, 1))
    constants = {"weight": (colours / 128).astype(np.float32), "bias": (-colours.sum((1, 2, 3))).astype(np.float32)}
    save([helper.make_node("AveragePool", ["data"], ["means"], kernel_shape=[56, 56], strides=[56, 56]),
          helper.make_node("Conv", ["means", "weight", "bias"], ["quarters"], kernel_shape=[1, 1]),
          helper.make_node("Flatten", ["quarters"], ["fc1"])], constants, [("data", [1, 3, 112, 112])], [("fc1", [1, 16])], path)


detector(sys.argv[1] + "/detector.onnx")
recogniser(sys.argv[1] + "/recogniser.onnx")
