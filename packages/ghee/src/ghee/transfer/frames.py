"""Store for processes of any hosts: the bytes travel in the message itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ghee.codec import Buffer, Encoded
from ghee.transfer.contract import Parcel


class FrameStore:
    """One copy when the batch is laid down, so that the function may go on with its arrays; none after that."""

    def put(self, encoded: Encoded, receivers: int) -> Parcel:
        """Copy the buffers into one."""
        whole = bytearray().join(encoded.buffers)
        sizes = tuple(buffer.nbytes for buffer in encoded.buffers)
        return Parcel(None, encoded.header, encoded.rows, encoded.size, place=(sizes, whole))

    def pack(self, parcel: Parcel, to: str) -> tuple[object, Sequence[Buffer]]:
        """The sizes as the note, the bytes as one frame."""
        sizes, whole = parcel.place  # type: ignore[misc]
        return sizes, [memoryview(whole)]  # type: ignore[has-type]

    def drop(self, parcel: Parcel) -> None:
        """Nothing is shared between receivers."""

    def open(self, sender: str, note: object, frames: Sequence[Buffer]) -> list[Buffer]:
        """The parts of the frame; ZeroMQ has given this process its own, writable, bytes."""
        sizes: tuple[int, ...] = note  # type: ignore[assignment]
        whole, start, parts = memoryview(frames[0]), 0, []
        for size in sizes:
            parts.append(whole[start : start + size])
            start += size
        return parts  # type: ignore[return-value]

    def freed(self) -> Iterable[tuple[str, list[object]]]:
        """Nothing has to be told back."""
        return ()

    def give_back(self, receiver: str, places: Iterable[object]) -> None:
        """Nothing was lent."""

    def peer_gone(self, address: str) -> None:
        """Nothing was lent."""

    def close(self) -> None:
        """Nothing is held."""
