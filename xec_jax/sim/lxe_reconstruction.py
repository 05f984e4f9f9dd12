"""What files of real data hold in place of the truth: quantities with errors of known size."""

import jax
import jax.numpy as jnp

from xec_jax.kinematics import uvw_to_xyz, vector_to_angles, xyz_to_uvw
from xec_jax.sim.lxe_parameters import LxeParameters
from xec_jax.types import Array, Key


def reconstruct(
    key: Key, truth: dict[str, Array], center: Array, params: LxeParameters
) -> dict[str, Array]:
    """Draws the reconstructed quantities of one event around the truth, Gaussian.

    Args:
        key: Key of the event's errors.
        truth: Truth branches of the event.
        center: Mean position (3,) of the emitted light in cm.
        params: The simulated detector, with the sizes of the errors.

    Returns:
        `xyzRecoFI`, `uvwRecoFI` (first interaction) and `xyzRecoLC`, `uvwRecoLC` (center of the
        light) (3,) in cm, `xyzVTX` (3,) in cm, `emiVec` (3,) and `emiAng` (2,) in degrees from
        the vertex to the first interaction, `energyReco` in GeV, `timeReco` in ns.
    """
    normal = jax.random.normal(key, (11,))

    def smear(xyz: Array, normal: Array) -> Array:
        uvw = xyz_to_uvw(xyz) + jnp.array(params.reco_position_cm) * normal
        return uvw.at[2].set(jnp.maximum(uvw[2], 0.0))

    first, light = smear(truth["xyzTruth"], normal[:3]), smear(center, normal[3:6])
    vertex = truth["xyzVTX"] + params.reco_vertex_cm * normal[6:9]
    flight = uvw_to_xyz(first) - vertex
    direction = flight / jnp.linalg.norm(flight)
    return {
        "xyzRecoFI": uvw_to_xyz(first),
        "uvwRecoFI": first,
        "xyzRecoLC": uvw_to_xyz(light),
        "uvwRecoLC": light,
        "xyzVTX": vertex,
        "emiVec": direction,
        "emiAng": vector_to_angles(direction),
        "energyReco": truth["energyTruth"] * (1 + params.reco_energy * normal[9]),
        "timeReco": truth["timeTruth"] + params.reco_time_ns * normal[10],
    }
