"""What operations and layers do to channels, by their names: the same name, the same rule.

Functions and methods are named as :func:`~pnc_cli.network.nodes.node_name` does, layers by their
class.
"""

from __future__ import annotations

ELEMENTWISE = set(
    """
    relu relu_ relu6 gelu silu silu_ swish mish hardswish hardsigmoid hardtanh leaky_relu elu selu softplus
    sigmoid sigmoid_ tanh tanh_ dropout contiguous clone float to type_as abs exp neg sqrt rsqrt square
    clamp clamp_ pow add add_ iadd mul mul_ imul sub sub_ isub div div_ truediv itruediv maximum minimum
    where hard_sigmoid hard_swish quick_gelu gelu_tanh maybe_add_mask addcmul
""".split()
)
RESHAPING = set(
    """
    reshape view flatten unflatten permute transpose swapaxes movedim squeeze unsqueeze unbind chunk split
    cat concat stack repeat reshape_as view_as getitem roll flip window_reverse window_reverse_nchw grid_reverse
    grid_reverse_nchw deblockify
""".split()
)
OVER_AN_AXIS = set(
    "mean sum amax amin var std norm softmax log_softmax normalize logsumexp".split()
)
SPATIAL = set(
    """
    interpolate pad avg_pool2d max_pool2d adaptive_avg_pool2d adaptive_max_pool2d
    AvgPool2d MaxPool2d AdaptiveAvgPool2d AdaptiveMaxPool2d AvgPool2dSame MaxPool2dSame LPPool2d
    Upsample UpsamplingBilinear2d ZeroPad2d ReflectionPad2d ReplicationPad2d
""".split()
)
ELEMENTWISE_LAYERS = set(
    """
    ReLU ReLU6 GELU SiLU Hardswish Hardsigmoid LeakyReLU ELU SELU Mish Sigmoid Tanh Hardtanh Dropout Dropout2d
    Identity Softplus DropPath Swish HardSwish HardSigmoid HardMish GELUTanh QuickGELU SquaredReLU
""".split()
)
CONVOLUTIONS = {"Conv1d", "Conv2d", "Conv2dSame"}  # not those that standardise their weights
