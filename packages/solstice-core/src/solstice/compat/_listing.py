"""What adapters there are, and whether they work."""

from dataclasses import dataclass

from solstice.compat import _registry


@dataclass(frozen=True)
class AdapterInfo:
    """One adapter that is installed, or registered in this process.

    Attributes:
        name: its class name, as in `solstice.compat.FlaxModel`.
        wraps: the import prefix of the types that it wraps.
        kind: "model" or "optimizer".
        where: the class, as in "solstice_flax:FlaxModel".
        distribution: name and version of the package that it came with.
        protocol: the version of the protocol that it was made for.
        health: "ok", or what is wrong and what to do.
    """

    name: str
    wraps: str
    kind: str
    where: str
    distribution: str
    protocol: int
    health: str

    def __str__(self) -> str:
        return (
            f"{self.name} wraps {self.wraps} ({self.kind}s, protocol v{self.protocol}), "
            f"{self.distribution}: {self.health}"
        )


def adapters() -> list[AdapterInfo]:
    """`solstice.compat.adapters()`: the adapters that there are, by name, and whether they work.

    Each is imported to tell, with the framework that it wraps.
    """
    found = [
        AdapterInfo(
            name=claim.class_name,
            wraps=claim.prefix,
            kind=claim.kind,
            where=claim.value,
            distribution=claim.distribution,
            protocol=claim.version,
            health=_registry.health(claim),
        )
        for claim in _registry.all_claims()
    ]
    return sorted(found, key=lambda info: (info.kind, info.name, info.distribution))
