"""Direction of the photon: from where it started to where it converted.

    n = (conversion - vertex) / |conversion - vertex|,  theta = acos(n_z),  phi = atan2(n_y, -n_x)

The vertex comes from the positron of the event; without one, from the center of the target, whose
length along the beam then makes most of the error in theta.
"""

import numpy as np

from xec_jax.kinematics import uvw_to_xyz, vector_to_angles


def vertex_direction(uvw: np.ndarray, vertex: np.ndarray | None = None) -> np.ndarray:
    """Computes theta and phi.

    Args:
        uvw: Reconstructed conversion u, v, w (n, 3) in cm.
        vertex: Where the photon came from (n, 3) in cm, the center of the target if not given.

    Returns:
        float64 (n, 2) in degrees, NaN where one of them is not finite.
    """
    away = np.asarray(uvw_to_xyz(uvw)) - (0.0 if vertex is None else np.asarray(vertex))
    return np.asarray(vector_to_angles(away), np.float64)
