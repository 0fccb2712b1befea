"""Who waits for a collection's folder, and for how long."""

import asyncio

from handlers.qdrant.write_gate import WriteGate


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


async def test_whoever_wants_to_hold_it_too_waits_and_all_go_on_once_it_is_open() -> None:
    gate, order = WriteGate(), list[str]()

    async def hold() -> None:
        async with gate.hold("one"):
            order.append("held")

    async def write(collection: str) -> None:
        await gate.passing(collection)
        order.append(f"written to {collection}")

    async with asyncio.timeout(10), asyncio.TaskGroup() as group, gate.hold("one"):
        group.create_task(hold())
        group.create_task(write("two"))
        await asyncio.sleep(0.01)
        group.create_task(write("one"))
        await asyncio.sleep(0.01)
        # Another collection's is not held.
        assert order == ["written to two"]
        assert 0 < gate.waited("one") < 10
    assert order == ["written to two", "held", "written to one"]
    assert gate.waited("one") == 0
