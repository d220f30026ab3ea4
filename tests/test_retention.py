"""How long what is over is remembered."""

from typing import Any

import pytest

from asana_webhooks import ConfigurationError, MemoryStore, Retention, sign_body
from asana_webhooks.store.base import NewDelivery
from tests.helpers.stores import SECRET, Clock, body, deliver, event, register

DAY = 86_400


def test_by_default_nothing_unhandled_is_forgotten() -> None:
    """Keys are kept three days, three times as long as Asana repeats itself; dead letters until somebody says so."""
    assert Retention() == Retention(done=3 * DAY, dead=None, every=600)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"done": 26 * 3600 - 1}, "done must be at least 93600"),
        ({"done": -1}, "done must be"),
        ({"done": None}, "done must be"),
        ({"dead": DAY}, "dead must not be less than done"),
        ({"dead": "1"}, "dead must be"),
        ({"every": 0}, "every must be"),
        ({"every": float("nan")}, "every must be"),
    ],
)
def test_what_cannot_work_is_refused(given: dict[str, Any], said: str) -> None:
    """Keys must outlive Asana's own repetitions, or what was done would be done again."""
    with pytest.raises(ConfigurationError, match=said):
        Retention(**given)


@pytest.mark.parametrize(
    ("dead", "age", "forgotten", "letters"),
    [
        (None, 3 * DAY - 1, 0, 1),
        (None, 3 * DAY + 1, 1, 1),
        (None, 300 * DAY, 1, 1),
        (5 * DAY, 5 * DAY - 1, 1, 1),
        (5 * DAY, 5 * DAY + 1, 2, 0),
    ],
)
async def test_each_kind_has_its_age(dead: float | None, age: float, forgotten: int, letters: int) -> None:
    """Finished deliveries go after three days, dead letters after their own time or never, others never."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    id = await register(store)
    done, failed = body(event()), body(event())
    for content in (done, failed):
        await deliver(store, id, content)
    first, second = await store.claim(2, lease=60)
    await store.done(first)
    await store.fail(second, error="", retry_in=None)
    await deliver(store, id, body(event()))
    clock.now += age

    assert await Retention(dead=dead).apply(store) == forgotten
    assert len(await store.dead_letters()) == letters
    assert (await store.health()).waiting == 1
    again = await store.put(NewDelivery(registration=id, signature=sign_body(done, secret=SECRET), body=done))
    assert again == ("stored" if forgotten else "duplicate")
