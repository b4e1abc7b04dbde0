"""All faults of the campaign, in the order in which they are provoked: those that share a machine first."""

from __future__ import annotations

from kjump.lab.campaign import image_faults, machine_variants, power_faults, save_faults

FAULTS = (*save_faults.FAULTS, *image_faults.FAULTS, *power_faults.FAULTS, *machine_variants.FAULTS)
