"""Every number of the simulated calorimeter, with its unit and where it comes from."""

import math
from dataclasses import dataclass, fields
from typing import Literal

from xec_jax.errors import ConfigError

SIMULATION_VERSION = 2
"""Raised whenever equal seeds and parameters no longer give equal events."""

Origin = Literal["target", "cex"]
Variant = Literal["mc", "data", "cex"]


@dataclass(frozen=True)
class LxeParameters:
    """What the simulated detector is made of; equal parameters and seeds give equal events.

    Sources of the numbers: [A] MEG II Collaboration, Eur. Phys. J. C 84 (2024) 190; [B] MEG II
    Collaboration, Eur. Phys. J. C 78 (2018) 380; [C] Particle Data Group, atomic and nuclear
    properties of liquid xenon, and the review of particles in matter; [D] T. Doke et al., Jpn. J.
    Appl. Phys. 41 (2002) 1538; [E] N. Ishida et al., Nucl. Instrum. Meth. A 384 (1997) 380;
    [F] A. Baldini et al., Nucl. Instrum. Meth. A 545 (2005) 753; [G] G. M. Seidel,
    R. E. Lanou, W. Yao, hep-ex/0111054; [S] assumed for this simulation.

    Attributes:
        origin: `target`, muons that stop on the slanted target; `cex`, photons of neutral pions
            from a target in the centre, whose partner is tagged back to back: only then are
            there two lines. All of pi- p -> pi0 n is flat from 54.9 to 82.9 MeV.
        energy_mev: MeV. Lowest and highest photon energy, flat in between, equal for a line;
            for `cex` the two lines themselves; from 5 MeV on. [A]
        beam_sigma_cm: cm. Gaussian beam spot in x and y. [S]
        target_slant_deg: degrees between target and beam, z = x / tan(slant). [B]
        target_half_length_cm: cm. Half axis of the elliptic target, along the slant. [A]
        target_half_height_cm: cm. The other half axis, along y. [A]
        cex_sigma_cm: cm. Gaussian spread of the pions' origin per axis, cut at three sigma. [S]
        half_u_cm: cm. Photons enter the inner face evenly within +-u. [A, fiducial 23.9]
        half_v_cm: cm. The same for v. [A, fiducial 67.9]
        time_spread_ns: ns. Times of emission are even within +- this. [S]
        radiation_length_cm: cm, unit of the shower's length. [S, prescribed; with [C] it is
            2.87 at the 2.953 g/cm3 that conversions and muons use]
        critical_energy_mev: MeV, where ionization and radiation lose alike. [C]
        moliere_radius_cm: cm, holds 90 % of a shower's energy. [C]
        profile_slope: 1. Fall of the longitudinal profile per radiation length. [C]
        n_deposits: Point sources that stand for the shower; the first is the conversion. [S]
        edge_cm: cm. Light fades within this of the walls, so that it has derivatives. [S]
        photons_per_mev: 1/MeV. Scintillation photons, 1 / 21.6 eV. [D]
        yield_spread: 1. Relative spread of an event's yield; limits energy resolution. [A, S]
        rayleigh_cm: cm. Length of Rayleigh scattering, which turns direct into diffuse light.
            [E; between the calculated 30 cm of [G] and longer measured values]
        absorption_cm: cm. Length of absorption by impurities. [F: more than 100 cm]
        diffuse_range_cm: cm. Distance at which diffuse light has forgotten its origin. [S]
        reflectivity: 1. Diffuse reflection of the walls between the sensors. [S]
        sipm_efficiency: 1. Photoelectrons per photon on the chips of a SiPM, nominal. [B, S]
        pmt_efficiency: 1. The same for the cathode of a PMT. [S]
        efficiency_spread: 1. True efficiencies around the nominal, relative. [S]
        gain_spread: 1. Charges per photoelectron around the nominal, relative. [S]
        sensor_seed: Fixes efficiencies and gains: one detector for samples of any seed.
        charge_spread: 1. Relative width of the charge of one photoelectron. [S]
        noise_phe: photoelectrons. Electronic noise of a charge. [S]
        refractive_index: 1. Speed of light in vacuum over that in xenon. [S; about the index of
            the phase at 178 nm, 1.69; that of the group, at which light travels, is larger]
        time_resolution_ns: ns. A sensor's jitter is this over sqrt(photoelectrons); with 1e5
            photoelectrons per signal photon 20 ns mean about 65 ps for the calorimeter. [A, S]
        time_walk_ns: ns. Faint signals are late by this over sqrt(photoelectrons). [S]
        time_threshold_phe: photoelectrons. Sensors with fewer have no time. [S]
        reference_threshold_phe: photoelectrons. Sensors above it may set the zero of
            `relative_time`. [branch definition]
        dead_fraction: 1. Probability that a channel is dead throughout a run. [S]
        events_per_run: Consecutive events with the same dead channels. [S]
        first_run: Number of the first run.
        pileup_rate_hz: 1/s. Further photons in the calorimeter; 0 for none. [option]
        pileup_min_mev: MeV. Their lowest energy, 5 or more. [S]
        overlap_window_ns: ns. Second photons and muons come within +- half of this. [S]
        cosmic_share: 1. Share of events that a cosmic muon crosses. [option]
        muon_mev_per_cm: MeV/cm. Its energy loss: 1.255 MeV cm2/g at 2.953 g/cm3. [C]
        variant: Branches of the files: `mc`, all with truth; `data`, as of real data with
            reconstructed quantities instead of truth; `cex`, the same with the branch `dead`.
        solid_angle: Whether files hold each sensor's solid angle over 4 pi.
        reco_position_cm: cm. Errors of the reconstructed u, v and w. [S]
        reco_vertex_cm: cm. Error of the vertex per axis, as from the positron. [S]
        reco_energy: 1. Relative error of the reconstructed energy. [A]
        reco_time_ns: ns. Error of the reconstructed time. [S]
    """

    origin: Origin = "target"
    energy_mev: tuple[float, float] = (15.0, 60.0)
    beam_sigma_cm: float = 1.1
    target_slant_deg: float = 15.0
    target_half_length_cm: float = 13.5
    target_half_height_cm: float = 3.3
    cex_sigma_cm: float = 1.0
    half_u_cm: float = 24.0
    half_v_cm: float = 68.0
    time_spread_ns: float = 10.0

    radiation_length_cm: float = 2.77
    critical_energy_mev: float = 11.66
    moliere_radius_cm: float = 5.22
    profile_slope: float = 0.5
    n_deposits: int = 8
    edge_cm: float = 0.2

    photons_per_mev: float = 46_300.0
    yield_spread: float = 0.015
    rayleigh_cm: float = 36.4
    absorption_cm: float = 200.0
    diffuse_range_cm: float = 40.0
    reflectivity: float = 0.0

    sipm_efficiency: float = 0.15
    pmt_efficiency: float = 0.16
    efficiency_spread: float = 0.03
    gain_spread: float = 0.01
    sensor_seed: int = 0
    charge_spread: float = 0.4
    noise_phe: float = 0.5

    refractive_index: float = 1.7
    time_resolution_ns: float = 20.0
    time_walk_ns: float = 1.0
    time_threshold_phe: float = 5.0
    reference_threshold_phe: float = 50.0

    dead_fraction: float = 0.01
    events_per_run: int = 1000
    first_run: int = 1
    pileup_rate_hz: float = 0.0
    pileup_min_mev: float = 5.0
    overlap_window_ns: float = 200.0
    cosmic_share: float = 0.0
    muon_mev_per_cm: float = 3.7

    variant: Variant = "mc"
    solid_angle: bool = False
    reco_position_cm: tuple[float, float, float] = (0.25, 0.25, 0.5)
    reco_vertex_cm: float = 0.1
    reco_energy: float = 0.018
    reco_time_ns: float = 0.065

    def __post_init__(self) -> None:
        for field in fields(self):
            value = _as_type_of(field.default, getattr(self, field.name))
            if value is None:
                raise ConfigError(
                    f"{field.name} = {getattr(self, field.name)!r}",
                    expected=f"a value like {field.default!r}; numbers >= 0",
                )
            object.__setattr__(self, field.name, value)
        low, high = self.energy_mev
        rules = {
            **{name: getattr(self, name) > 0 for name in _POSITIVE},
            # Shower and conversion are not made for less.
            "energy_mev": 5 <= low <= high < 1000,
            "origin": self.origin in ("target", "cex"),
            "variant": self.variant in ("mc", "data", "cex"),
            "dead_fraction": self.dead_fraction < 1,
            # Within these no photon enters through a side.
            "half_u_cm": 0 < self.half_u_cm <= 25,
            "half_v_cm": 0 < self.half_v_cm <= 69,
            "reflectivity": self.reflectivity <= 1,
            "cosmic_share": self.cosmic_share <= 1,
            "efficiency_spread": self.efficiency_spread < 0.3,
            "gain_spread": self.gain_spread < 0.3,
            "pileup_min_mev": 5 <= self.pileup_min_mev < 50,
        }
        wrong = [name for name, is_right in rules.items() if not is_right]
        if wrong:
            raise ConfigError(
                ", ".join(f"{name} = {getattr(self, name)}" for name in wrong),
                expected="5 <= lowest <= highest energy, half_u_cm <= 25, half_v_cm <= 69, "
                "shares up to 1 (dead_fraction below 1), spreads of sensors below 0.3, "
                "pileup_min_mev from 5 to 50, lengths, counts and efficiencies above 0",
            )


_POSITIVE = (
    "beam_sigma_cm",
    "target_slant_deg",
    "target_half_length_cm",
    "target_half_height_cm",
    "radiation_length_cm",
    "critical_energy_mev",
    "profile_slope",
    "n_deposits",
    "edge_cm",
    "photons_per_mev",
    "rayleigh_cm",
    "absorption_cm",
    "diffuse_range_cm",
    "sipm_efficiency",
    "pmt_efficiency",
    "refractive_index",
    "events_per_run",
)


def _as_type_of(example: object, value: object) -> object:
    """Returns a value in the type of an example, None if it is not one; numbers >= 0."""
    if isinstance(example, tuple):
        if not isinstance(value, tuple) or len(value) != len(example):
            return None
        found = tuple(map(_as_type_of, example, value))
        return None if None in found else found
    if isinstance(example, (bool, str)) or isinstance(value, bool):
        return value if type(value) is type(example) else None
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        return None
    return type(example)(value) if value == type(example)(value) else None  # type: ignore[call-arg]
