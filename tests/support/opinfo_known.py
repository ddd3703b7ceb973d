"""What of torch's database of operators the engine refuses or computes differently, and why.

test_opinfo.py fails where an entry is missing here, and where one is not needed.
"""

from __future__ import annotations

# Operators without a rule, by the reason. (Of complex numbers, every operator that rounds is
# refused.)
REFUSED: dict[str, str] = {
    "discrete Fourier transforms": "_fft_c2c _fft_c2r _fft_r2c",
    "solvers and decompositions of linear algebra": """
        _linalg_eigh _linalg_slogdet _linalg_svd cholesky cholesky_inverse cholesky_solve geqrf
        linalg_eig linalg_householder_product linalg_ldl_factor_ex linalg_ldl_solve linalg_lstsq
        linalg_lu linalg_lu_factor_ex linalg_matrix_exp linalg_pinv linalg_qr ormqr
        triangular_solve
    """,
    "functions of which no kernel of the C library is the same": """
        i0 i0_ igamma igamma_ igammac igammac_ polygamma special_airy_ai special_bessel_j0
        special_bessel_j1 special_bessel_y0 special_bessel_y1 special_chebyshev_polynomial_t
        special_chebyshev_polynomial_u special_chebyshev_polynomial_v
        special_chebyshev_polynomial_w special_erfcx special_hermite_polynomial_h
        special_hermite_polynomial_he special_i0e special_i1 special_i1e
        special_laguerre_polynomial_l special_legendre_polynomial_p special_log_ndtr
        special_modified_bessel_i0 special_modified_bessel_i1 special_modified_bessel_k0
        special_modified_bessel_k1 special_ndtri special_scaled_modified_bessel_k0
        special_scaled_modified_bessel_k1 special_shifted_chebyshev_polynomial_t
        special_shifted_chebyshev_polynomial_u special_shifted_chebyshev_polynomial_v
        special_shifted_chebyshev_polynomial_w special_spherical_bessel_j0 special_zeta
    """,
    "sparse tensors": """
        _embedding_bag_backward _sparse_coo_tensor_with_dims_and_tensors _sparse_mm_reduce_impl
        _to_sparse sparse_sampled_addmm
    """,
    "makes complex numbers of others, which rounds": "_to_copy polar",
    "another form has a rule: scatter_reduce, native_batch_norm, cross_entropy of linear": """
        _batch_norm_with_update _linear_cross_entropy_batch_chunked
        _linear_cross_entropy_batch_chunked_no_reduction scatter scatter_
    """,
    "sums of weights, by places that were rounded": (
        "_histogramdd_bin_edges histogram segment_reduce"
    ),
}

# (entry, form, type), each of them or *: why a result is not torch's.
_COARSE = "torch's kernel computes the places themselves in 8 bits"
_EDGE = "an input next to 1, of 8 bits: 1 − x² may round to 0"
_CANCELS = "the terms are far greater than their sum"
DIFFERS: dict[tuple[str, str, str], str] = {
    ("grid_sampler_2d", "forward", "bfloat16"): _COARSE,
    ("grid_sampler_2d", "backward", "bfloat16"): _COARSE,
    ("nn.functional.grid_sample", "forward", "bfloat16"): _COARSE,
    ("nn.functional.grid_sample", "backward", "bfloat16"): _COARSE,
    ("histc", "forward", "bfloat16"): _COARSE,
    ("histc", "out", "bfloat16"): _COARSE,
    ("asin", "backward", "bfloat16"): _EDGE,
    ("atanh", "backward", "bfloat16"): _EDGE,
    ("cov", "forward", "float64"): "its weights are float32",
    (
        "masked.prod",
        "backward",
        "*",
    ): "under any dispatch mode torch multiplies the others instead "
    "of dividing the product, which is NaN, by each",
    ("nn.functional.scaled_dot_product_attention", "backward", "*"): "strides of gradients: those "
    "of its plain form",
    ("tensordot", "backward", "bfloat16"): "strides of torch's product of transposed matrices of "
    "16 bits",
    ("logcumsumexp", "backward", "*"): _CANCELS,
    ("logsumexp", "backward", "*"): _CANCELS,
    ("nn.functional.normalize", "backward", "bfloat16"): _CANCELS,
    ("nn.functional.multi_head_attention_forward", "backward", "*"): _CANCELS,
}

# Entries that make values: drawn, constants or neighbours, which are no arithmetic.
VALUES = frozenset(
    """
    angle bernoulli cauchy exponential log_normal nextafter normal.in_place rand_like randn_like
    uniform
    """.split()
)

# Entries that leave their values unset.
UNSET = frozenset(
    """
    empty empty_like empty_permuted empty_strided new_empty new_empty_strided
    """.split()
)
