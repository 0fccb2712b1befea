"""Who waits for a collection's folder, and for how long."""

import asyncio

from handlers.write_gate import WriteGate


async def test_who_gave_up_waits_no_longer() -> None:
    gate = WriteGate()
    async with gate.hold("one"):
        writes = [asyncio.create_task(gate.passing("one")) for _ in range(2)]
        await asyncio.sleep(0.01)
        assert gate.waited("one") > 0
        writes[0].cancel()
        await asyncio.wait([writes[0]])
        assert gate.waited("one") > 0
        writes[1].cancel()
        await asyncio.wait([writes[1]])
        assert gate.waited("one") == 0

    await gate.passing("one")
    assert gate.waited("one") == 0
