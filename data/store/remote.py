"""A store on an object store: whole objects, and the mirror of them on this machine."""

from __future__ import annotations

from data.remote.conditional import FORGOTTEN_SECONDS
from data.remote.object_store import RemotePath
from data.store import mirror
from data.store.paths import store_root
from data.store.place import Listed


class RemotePlace:
    """Objects whose keys begin with those of the address. All methods raise UserError and its kinds where the store fails."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self.root = store_root(self.address)
        self._remote = RemotePath.of(self.address)

    def files(self, below: str = "") -> dict[str, Listed]:
        """By a request for 1,000 objects."""
        start = f"{below}/" if below else ""
        found = (self._remote.child(below) if below else self._remote).find()
        return {f"{start}{name}": Listed(entry.bytes, entry.changed, entry.version) for name, entry in found.items()}

    def read(self, name: str) -> bytes | None:
        """The object's bytes."""
        return self._remote.child(name).read()

    def put(self, name: str, content: bytes) -> None:
        """As one object."""
        self._remote.child(name).put_bytes(content)

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """By the store's own condition."""
        return self._remote.child(name).put_if_absent(content)

    def delete(self, name: str) -> None:
        """The object, and its copy here."""
        mirror.remove(self.root / name)

    def sweep(self, below: str, *, now: float) -> None:
        """By their age: what a put without the store's own condition needs is of no use after half a minute."""
        folder = self._remote.child(below)
        for name, entry in folder.find(hidden=True).items():
            if now - entry.changed > FORGOTTEN_SECONDS:
                folder.child(name).delete()

    def refresh(self) -> None:
        """By one listing of the whole store."""
        mirror.refresh(self.root)
