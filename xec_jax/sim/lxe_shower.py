"""What photons and muons leave in the xenon: clouds of point-like deposits that emit light.

Source: Geant4 Physics Reference Manual, section Gamma Conversion into e+e- Pair (a fit to the pair
    cross sections of J. H. Hubbell, H. A. Gimm, I. Overbo, J. Phys. Chem. Ref. Data 9 (1980) 1023);
    O. Klein, Y. Nishina, Z. Phys. 52 (1929) 853 (Compton); Particle Data Group, Passage of
    Particles through Matter, section Electromagnetic cascades (longitudinal profile); G.
    Grindhammer, S. Peters, hep-ex/0001020 (radial profile).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import erf_inv

from xec_jax.sim.lxe_parameters import LxeParameters
from xec_jax.sim.lxe_volume import wall_distance
from xec_jax.types import Array, ArrayLike, Key

ELECTRON_MEV = 0.51099895
DENSITY_G_CM3 = 2.953
_ATOMS_PER_BARN_CM = DENSITY_G_CM3 / 131.293 * 0.602214
_Z = 54
_RADIUS_BARN = 0.0794078  # classical radius of the electron, squared
_PAIR_BARN = (
    (_Z + 1)
    * 1e-6
    * (
        np.array([_Z, _Z**2, 1])
        @ [
            [8.7842e2, -1.9625e3, 1.2949e3, -2.0028e2, 1.2575e1, -2.8333e-1],
            [-1.0342e1, 1.7692e1, -8.2381, 1.3063, -9.0815e-2, 2.3586e-3],
            [-4.5263e2, 1.1161e3, -8.6749e2, 2.1773e2, -2.0467e1, 6.5372e-1],
        ]
    )
)
"""Cross section of pair production in xenon, a polynomial in ln(E / m), 1.5 MeV to 100 GeV."""
_MUON_STEPS = 64
_MUON_HALF_CM = 120.0


def conversion_length(energy_mev: ArrayLike) -> Array:
    """Computes the mean way of a photon to its first interaction in xenon, cm.

    Pair production as parametrized for Geant4, by its manual within 5 % of the tables, and
    Compton scattering off free electrons, exact: 9.55 cm at 5 MeV, 7.71 cm at 15 MeV, 5.58 cm at
    52.8 MeV, towards 9/7 of a radiation length at high energy. The photoelectric effect is left
    out, less than 1 % from 5 MeV on.

    Args:
        energy_mev: Energy in MeV, 5 to 1e5, any shape.
    """
    k = jnp.asarray(energy_mev) / ELECTRON_MEV
    pair = jnp.polyval(jnp.asarray(_PAIR_BARN[::-1]), jnp.log(k))
    logarithm, wide = jnp.log1p(2 * k), 1 + 2 * k
    compton = (1 + k) / k**2 * (2 * (1 + k) / wide - logarithm / k)
    compton += logarithm / (2 * k) - (1 + 3 * k) / wide**2
    return 1 / (_ATOMS_PER_BARN_CM * (pair + 2 * np.pi * _RADIUS_BARN * _Z * compton))


def sample_shower(key: Key, truth: dict[str, Array], params: LxeParameters) -> tuple[Array, Array]:
    """Draws the deposits of a photon's shower.

    The first deposit is the conversion. The others lie along the flight at depths t (in
    radiation lengths) of the profile `t^(a-1) exp(-b t)` of two electrons with half the energy
    each, `a = 1 + b (ln(E / 2 E_c) - 1/2)`, at radii of the profile `2 r R^2 / (r^2 + R^2)^2`
    whose R grows with t to a third of the Moliere radius. Shares of the energy are exponential.
    Deposits beyond a wall give no light. The longitudinal profile is one of showers above 1 GeV,
    extrapolated far below: a is 0.53 at 15 MeV, and 0.3 from 9.5 MeV down.

    Args:
        key: Key of the shower.
        truth: `xyzTruth` (3,) in cm, `emiVec` (3,) and `energyTruth` in GeV of one photon.
        params: The simulated detector.

    Returns:
        Positions (k, 3) in cm and emitted photons (k,), both differentiable in the truth.
    """
    k, energy_mev = params.n_deposits, truth["energyTruth"] * 1e3
    even = jax.random.uniform(key, (5, k + 1), minval=1e-7)
    u, turn, share, boost = even[:4, :k]
    normal = np.sqrt(2) * erf_inv(2 * even[4] - 1)
    slope = params.profile_slope
    shape = 1 + slope * (jnp.log(energy_mev / (2 * params.critical_energy_mev)) - 0.5)
    depth = _gamma(normal[1:], boost, jnp.maximum(shape, 0.3)) / slope
    # The profile has a long tail: cut after 98 %, seven times R.
    u *= 0.98
    scale = params.moliere_radius_cm / 3 * -jnp.expm1(-depth)
    radius = scale * jnp.sqrt(u / (1 - u))
    angle = 2 * np.pi * turn
    along = truth["emiVec"]
    first = jnp.cross(along, jnp.array([0.0, 0.0, 1.0]))
    first /= jnp.linalg.norm(first)
    second = jnp.cross(along, first)
    steps = (
        params.radiation_length_cm * depth[:, None] * along
        + (radius * jnp.cos(angle))[:, None] * first
        + (radius * jnp.sin(angle))[:, None] * second
    )
    is_first = jnp.arange(k) == 0
    deposits = truth["xyzTruth"] + jnp.where(is_first[:, None], 0.0, steps)
    share = -jnp.log1p(-share)
    emitted = energy_mev * params.photons_per_mev * share / share.sum()
    emitted *= 1 + params.yield_spread * normal[0]
    return deposits, emitted * jnp.where(is_first, 1.0, _contained(deposits, params))


def sample_muon(key: Key, params: LxeParameters) -> tuple[Array, Array, Array]:
    """Draws a cosmic muon through the xenon: flux as cos^2 of the zenith angle, y upwards.

    Returns:
        Positions (k, 3) in cm, emitted photons (k,), and the deposited energy in MeV.
    """
    u = jax.random.uniform(key, (5,))
    # A point inside, about even in the volume.
    radius, angle, z = jnp.array([85.0, 0.0, 0.0]) + (2 * u[:3] - 1) * jnp.array([20.0, 1.05, 38.0])
    place = jnp.stack([-radius * jnp.cos(angle), radius * jnp.sin(angle), z])
    cosine, azimuth = u[3] ** (1 / 3), 2 * np.pi * u[4]
    sine = jnp.sqrt(1 - cosine**2)
    direction = jnp.stack([sine * jnp.cos(azimuth), -cosine, sine * jnp.sin(azimuth)])
    step = 2 * _MUON_HALF_CM / _MUON_STEPS
    ways = (jnp.arange(_MUON_STEPS) + 0.5) * step - _MUON_HALF_CM
    deposits = place + ways[:, None] * direction
    energy = params.muon_mev_per_cm * step * _contained(deposits, params)
    return deposits, energy * params.photons_per_mev, energy.sum()


def _gamma(normal: Array, even: Array, shape: Array) -> Array:
    """Gamma-distributed numbers as a smooth function of their shape, good to about 1 %.

    A number of shape a is one of shape a + 1 times `even^(1 / a)`; the former by the cube root
    of E. B. Wilson, M. M. Hilferty, PNAS 17 (1931) 684. A sampler that rejects has no derivative.
    """
    above = shape + 1
    root = 1 - 1 / (9 * above) + normal / (3 * jnp.sqrt(above))
    return above * jnp.maximum(root, 0.0) ** 3 * even ** (1 / shape)


def _contained(deposits: Array, params: LxeParameters) -> Array:
    """Share of deposits (k, 3) inside the xenon: 0 beyond a wall, 1 from `edge_cm` inside on."""
    x = jnp.clip(wall_distance(deposits) / params.edge_cm, 0, 1)
    return x * x * (3 - 2 * x)
