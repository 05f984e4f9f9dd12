"""What the simulated calorimeter is made of."""

from dataclasses import dataclass

from xec_jax.errors import ConfigError

SIMULATION_VERSION = 1
"""Raised whenever equal seeds and parameters no longer give equal events."""


@dataclass(frozen=True)
class LxeParameters:
    """What the simulated detector is made of.

    Attributes:
        energy_mev: Lowest and highest photon energy, flat in between; equal for a line.
        beam_sigma_cm: Beam spot, Gaussian in x and y, cut at three sigma.
        target_slant_deg: Angle between target and beam; makes z = x / tan(angle).
        half_u_cm: Photons enter the inner face uniformly within +-u. Deep conversions move
            outward, as their direction says.
        half_v_cm: The same for v.
        conversion_length_cm: Mean path to the first interaction, 9/7 of the radiation length
            2.77 cm and a little Compton scattering less.
        depth_cm: Radial extent of the xenon; no conversion and no light beyond.
        n_deposits: Point sources that stand for the shower; the first is the conversion.
        shower_length_cm: Mean distance of the other deposits along the flight direction.
        shower_width_cm: Their Gaussian spread around it, per axis.
        photons_per_mev: Scintillation yield, 1 / 21.6 eV.
        yield_spread: Relative event-to-event spread of the yield; limits energy resolution.
        attenuation_cm: Length after which direct light has dropped to 1/e (mostly Rayleigh
            scattering, which turns it into diffuse light).
        diffuse_fraction: Photons that reach the walls evenly spread, relative to all emitted.
        wall_area_cm2: Total area of the six walls.
        sipm_efficiency: Photoelectrons per photon on the active area of a SiPM.
        pmt_efficiency: The same for the cathode of a PMT.
        charge_spread: Relative width of the charge of one photoelectron.
        gain_spread: Relative error of a sensor's gain, drawn per event.
        noise_phe: Electronic noise of a charge, in photoelectrons.
        refractive_index: Of the light's group velocity in xenon.
        time_spread_ns: Emission times are uniform in +- this.
        time_resolution_ns: Sensor time jitter is this over sqrt(photoelectrons); with 1e5
            photoelectrons per signal photon 20 ns mean about 65 ps for the calorimeter.
        time_threshold_phe: Sensors with fewer photoelectrons have no time.
        reference_threshold_phe: Sensors above it may set the zero of `relative_time`.
        dead_fraction: Probability that a channel is dead throughout a run.
        events_per_run: Consecutive events with the same dead channels.
        first_run: Number of the first run.
    """

    energy_mev: tuple[float, float] = (15.0, 60.0)
    beam_sigma_cm: float = 0.8
    target_slant_deg: float = 15.0
    half_u_cm: float = 24.0
    half_v_cm: float = 68.0
    conversion_length_cm: float = 3.5
    depth_cm: float = 38.5
    n_deposits: int = 3
    shower_length_cm: float = 2.0
    shower_width_cm: float = 0.8
    photons_per_mev: float = 46_300.0
    yield_spread: float = 0.015
    attenuation_cm: float = 45.0
    diffuse_fraction: float = 0.35
    wall_area_cm2: float = 45_000.0
    sipm_efficiency: float = 0.15
    pmt_efficiency: float = 0.16
    charge_spread: float = 0.4
    gain_spread: float = 0.01
    noise_phe: float = 0.5
    refractive_index: float = 1.7
    time_spread_ns: float = 10.0
    time_resolution_ns: float = 20.0
    time_threshold_phe: float = 5.0
    reference_threshold_phe: float = 50.0
    dead_fraction: float = 0.01
    events_per_run: int = 1000
    first_run: int = 1

    def __post_init__(self) -> None:
        low, high = self.energy_mev
        if not (0 < low <= high and 0 <= self.dead_fraction < 1 and self.n_deposits > 0):
            raise ConfigError(
                f"energy_mev = {self.energy_mev}, dead_fraction = {self.dead_fraction}, "
                f"n_deposits = {self.n_deposits}",
                expected="0 < lowest <= highest energy, a fraction in [0, 1), n_deposits >= 1",
            )
