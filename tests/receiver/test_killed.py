"""A real receiver process is killed while Asana delivers: what it answered with 200 is kept."""

import random
from pathlib import Path

import pytest

from tests.helpers.receiving import Load, prepare, receiver_process, sending, stored


async def kill_again_and_again(path: Path, *, door: str, kills: int, most: int) -> Load:
    """Kill a receiver under load and start it anew, each time after *most* more answers at most."""
    rng = random.Random(kills)
    await prepare(path)
    async with receiver_process(path, door=door) as receiver, sending(receiver.url, resend=True) as load:
        for _ in range(kills):
            await load.acknowledge(rng.randint(20, most))
            await receiver.kill()
            await receiver.start()
        await load.acknowledge(load.senders)
        await load.stop()
    return load


def assert_nothing_is_lost(path: Path, load: Load) -> None:
    """What was answered 200 is in the file, once, and so is nothing else: the rest was sent until it was answered."""
    found = stored(path)
    assert load.acknowledged - set(found.bodies) == set()
    assert sorted(found.bodies) == sorted(load.acknowledged)
    assert found.deliveries == len(found.bodies)
    assert found.intact
    assert set(load.statuses) == {200}


@pytest.mark.slow
async def test_a_killed_receiver_has_stored_what_it_acknowledged(tmp_path: Path) -> None:
    """SIGKILL under 20 senders: every body that was answered 200 is in the file, once, and the file is intact."""
    load = await kill_again_and_again(tmp_path / "store.db", door="aiohttp", kills=2, most=150)
    assert_nothing_is_lost(tmp_path / "store.db", load)
    assert len(load.acknowledged) >= 60
    assert load.broken >= 2


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("door", ["aiohttp", "asgi"])
async def test_many_kills(tmp_path: Path, door: str) -> None:
    """The same with 15 kills at random moments and thousands of bodies."""
    load = await kill_again_and_again(tmp_path / "store.db", door=door, kills=15, most=1_000)
    assert_nothing_is_lost(tmp_path / "store.db", load)
    assert len(load.acknowledged) >= 5_000
    assert load.broken >= 15
