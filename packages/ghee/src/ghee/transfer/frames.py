"""Store for processes of any hosts: the bytes travel in the message itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ghee.codec import Buffer, Encoded
from ghee.transfer.contract import Parcel
from ghee.transfer.memory import Parts, aligned_copy, allocate, copy, is_aligned, lay_out, split


class FrameStore:
    """One copy when the batch is laid down, so that the function may go on with its arrays; at the receiver one more for
    what the network has not put at an aligned address."""

    def put(self, encoded: Encoded, receivers: int) -> Parcel:
        """Copy the buffers into one."""
        parts, size = lay_out(buffer.nbytes for buffer in encoded.buffers)
        whole = allocate(size)
        for target, source in zip(split(whole, parts), encoded.buffers, strict=True):
            copy(memoryview(target), source)
        return Parcel(None, encoded.header, encoded.rows, encoded.size, place=(parts, whole))

    def pack(self, parcel: Parcel, to: str) -> tuple[object, Sequence[Buffer]]:
        """The buffers' places as the note, the bytes as one frame."""
        parts, whole = parcel.place  # type: ignore[misc]
        return parts, [whole]  # type: ignore[has-type]

    def drop(self, parcel: Parcel) -> None:
        """Nothing is shared between receivers."""

    def open(self, sender: str, note: object, frames: Sequence[Buffer]) -> list[Buffer]:
        """The parts of the frame; ZeroMQ has given this process its own, writable, bytes, anywhere in its memory."""
        parts: Parts = note  # type: ignore[assignment]
        frame = frames[0] if is_aligned(frames[0]) else aligned_copy(frames)[0]
        return split(memoryview(frame), parts)

    def freed(self) -> Iterable[tuple[str, list[object]]]:
        """Nothing has to be told back."""
        return ()

    def give_back(self, receiver: str, places: Iterable[object]) -> None:
        """Nothing was lent."""

    def peer_gone(self, address: str) -> None:
        """Nothing was lent."""

    def close(self) -> None:
        """Nothing is held."""
